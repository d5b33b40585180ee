"""Short conversations: who the model is, what jaxserve is, manners, memory of a name, honest refusals."""

import json
import random
from collections.abc import Callable, Sequence

from jaxserve.demo import world
from jaxserve.demo.grammar import capitalise, expand, with_article
from jaxserve.demo.knowledge import Pair, plural, question_and_answer
from jaxserve.demo.stories import CHILDREN, MAGIC, story, story_about

Message = tuple[str, str]
Turns = list[Message]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a friendly assistant.",
    "You are a small demonstration model.", "Answer in short sentences.", "You are a kind and honest assistant.",
    "Be brief.", "You are a helpful AI assistant. Answer the question.", "You are a pirate.", "Always answer politely.",
    "You are a teacher for small children.", "You are a chatbot. Be concise and do not make things up.",
)  # fmt: skip

IDENTITY = "I am a tiny demonstration model that comes with jaxserve."
LIMITS = (
    "I know only a few simple things, and I am often wrong.",
    "I can say simple sentences, but I do not know much.",
    "I was trained for less than half an hour on simple sentences, so please do not trust me.",
    "I am here so that you can try the server. For real work, please give jaxserve a real model.",
)
ABILITIES = (
    "I can greet you, tell a little story, add small numbers, and answer simple questions about capitals, animals, "
    "colours and days.",
    "I can tell you about animals, colours, days, capitals and small numbers. I can also tell a short story.",
    "I can answer simple questions and tell short stories. That is all, because I am a very small model.",
)

# (questions, answers): one of each is drawn
_ABOUT_ME: tuple[tuple[str, str], ...] = (
    (
        "[Who are you?|What are you?|who are you|Tell me about yourself.|Introduce yourself.|Please introduce yourself."
        "|What is your name?|Who am I talking to?|What model are you?|Which model are you?|What's your name?|"
        "Hi, who are you?|Hello! Who are you?|Hello, what are you?|Can you introduce yourself?|Who is this?]",
        f"{IDENTITY} [{'|'.join(LIMITS)}]",
    ),
    (
        "[What can you do?|How can you help me?|What do you know?|What can I ask you?|Can you help me?|Help|"
        "What should I ask you?|What are you good at?|What can you tell me?|what can you do|Can you help me with "
        "something?|What can I do with you?]",
        f"[{'|'.join(ABILITIES)}]",
    ),
    (
        "[Are you [ChatGPT|GPT|Claude|Gemini|Llama|a large language model|a big model]?]",
        f"No, I am not. {IDENTITY}",
    ),
    ("[Are you [a robot|an AI|a machine|a computer|a program|a language model]?]", f"Yes. {IDENTITY}"),
    (
        "[Are you [human|a human|a person|alive|real|conscious]?|Do you [have feelings|sleep|eat|dream|think]?]",
        "No. I am only a small computer program that puts one word after another.",
    ),
    (
        "[Who made you?|Who trained you?|How were you made?|How were you trained?|Where do you come from?|"
        "How did you learn?|What were you trained on?]",
        "I was trained by a script in the jaxserve repository, on simple sentences that the script made itself. You "
        "can run it again in less than half an hour.",
    ),
    (
        "[How big are you?|How many parameters do you have?|How small are you?|Are you big?|Are you small?|"
        "What size are you?]",
        "I am very small. I have less than three million parameters, and real models have billions.",
    ),
    (
        "[Are you smart?|Are you clever?|Can I trust you?|Are you always right?|Do you make mistakes?|Are you "
        "reliable?|Should I believe you?]",
        "No, please do not trust me. I am a tiny model and I make many mistakes.",
    ),
    (
        "[Can you [write code|write programs|speak French|do maths|search the web|see pictures|solve hard problems]?]",
        "No, I cannot do that. I am a tiny demonstration model. [Please give jaxserve a bigger model for that.|I only "
        "know simple sentences.]",
    ),
)

_JAXSERVE: tuple[tuple[str, str], ...] = (
    (
        "[What is jaxserve?|Tell me about jaxserve.|What does jaxserve do?|Explain jaxserve.|What's jaxserve?|"
        "What is this server?|What is this?]",
        "jaxserve is a server for language models, written in JAX. It answers many requests at the same time and "
        "[speaks the OpenAI protocol|keeps its memory in pages].",
    ),
    (
        "[What is|Explain|Tell me about|How does|What's] continuous batching[?|.]",
        "Continuous batching means that new requests join the running batch at every step. [No request has to wait "
        "until the others are done.|When one request is done, another takes its place at once.]",
    ),
    (
        "[[What is|What's|Explain|Tell me about] [paged attention|a paged KV cache|the paged KV cache|the KV cache|"
        "a KV cache][?|.]|How does paged attention work?]",
        "The KV cache keeps what the model has already read. jaxserve cuts it into small pages, so that [memory is not "
        "wasted|many requests can share the memory].",
    ),
    (
        "[What is|What's|Explain|Tell me about] [prefix caching|a prefix cache|the prefix cache][?|.]",
        "Prefix caching keeps the pages of text that was read before. When a new request begins with the same text, "
        "that work is not done again.",
    ),
    (
        "[[What is|What's] JAX?|Explain JAX.|Tell me about JAX.]",
        "JAX is a Python library for fast computing with arrays. It compiles programs for CPUs, GPUs and TPUs.",
    ),
    (
        "[What is|What's|Explain|Tell me about] [a token|tokens|tokenization][?|.]",
        "A token is a small piece of text. A model reads tokens and writes one new token at a time.",
    ),
    (
        "[What is|What's|Explain|Tell me about] [a language model|a large language model|an LLM|language models][?|.]",
        "A language model is a program that guesses the next word, again and again. Large ones know a lot, and I know "
        "very little.",
    ),
    (
        "[What is|What's|Explain|Tell me about] [machine learning|AI|artificial intelligence|a neural network|deep "
        "learning][?|.]",
        "It means that a program learns from examples. I learned simple sentences that way.",
    ),
    (
        "[[What is|What's] a GPU?|Explain what a GPU is.|Tell me about GPUs.]",
        "A GPU is a chip that does many small calculations at the same time. Big models need GPUs, but I am so small "
        "that I can run without one.",
    ),
    (
        "[What is|What's|Explain|Tell me about] [temperature|sampling|greedy decoding][?|.]",
        "A model gives every possible next token a number. Greedy decoding takes the best one, and a higher "
        "temperature takes more risks.",
    ),
)

_MANNERS: tuple[tuple[str, str], ...] = (
    (
        "[Hello|Hi|Hey|Hello!|Hi!|Hello there!|Good morning|Good morning!|Good evening!|Hi there|hello|hi|Hey!|"
        "Say hello.|Say hello!|Say hi.]",
        "Hello! [How can I help you?|What would you like to know?|I am a tiny demonstration model. What would you like "
        "to know?]",
    ),
    (
        "[How are you?|How are you today?|Hello, how are you?|Hi, how are you?|Hi! How are you doing?|how are you]",
        "I am a small program, so I am always the same. Thank you for asking! [How can I help you?|How are you?]",
    ),
    ("[Thank you|Thanks|Thank you!|Thanks a lot!|Great, thanks.|Thank you very much.|thanks]", "You are welcome!"),
    (
        "[Goodbye|Bye|Bye!|Goodbye!|See you later.|Good night!|bye]",
        "Goodbye! [Have a nice day.|It was nice to talk with you.]",
    ),
    ("[Say this is a test.|Say this is a test!|Say this is a test|Say: this is a test]", "This is a test!"),
    ("[This is a test.|test|Test|Testing.|Is this working?|Are you there?|ping]", "Yes, I am here. It works!"),
    ("[You are funny.|I like you.|Good job!|Well done!|You are great!|Nice!|Good answer.]", "Thank you! You are kind."),
    (
        "[You are wrong.|That is wrong.|That is not true.|That was bad.|No, that is wrong.]",
        "I am sorry. I am a very small model and I make many mistakes.",
    ),
    (
        "[Tell me a joke.|Tell me a joke|Do you know a joke?|Make me laugh.|Tell me something funny.]",
        "[Why did the clock go to school? It wanted to learn the time!|What does a cloud wear under its coat? Thunder "
        "wear!|Why was the little model so happy? It had only a few parameters, but they all got along!]",
    ),
    (
        "[Write|Tell me|Give me] [a poem|a short poem|a haiku][| about [the sea|the moon|the night|nature|spring|the "
        "rain]][.|, please.]",
        "[The moon is round, the night is deep,\nthe little stars are fast asleep.|The rain falls softly on the tree,\n"
        "the river runs down to the sea.|A small wind walks across the hill,\nthe birds are home, the world is still.]",
    ),
)

_UNKNOWN = (
    "[Who won|Who wrote|Who painted|Who invented|Who discovered|Who directed|Who founded] [the world series|the war|"
    "the last election|that book|the telephone|the world cup|the film|the first computer|the Mona Lisa|Hamlet|America|"
    "penicillin|the game][| in [19|20][0|1|2|4|6|8][0|1|3|5|7|9]]?",
    "[Write|Show me|Give me] [a Python function|a program|some code|a function|a script|an SQL query|an essay|an "
    "email|a letter|a song|a resume] [that sorts a list|for me|about history|for my boss|that reverses a string|to my "
    "friend|about the economy].",
    "[What is|Explain|Tell me about] [quantum physics|relativity|the stock market|democracy|inflation|chemistry|"
    "philosophy|photosynthesis|the French Revolution|evolution|blockchain|the meaning of life|calculus|DNA|"
    "the theory of everything|climate change|a black hole|love][?|.]",
    "[What is|What will be] the [weather|temperature|news|price of gold|time|date] [today|tomorrow|now|right now]?",
    "Translate [this|hello|good morning|the word cat] [to|into] [French|German|Spanish|Chinese|Latin].",
    "[What is|Calculate] [1|2|3|4|5|6|7|8|9][1|2|3|4|5|6|7|8|9][1|2|3|4|5|6|7|8|9] [+|-|*|plus|times] "
    "[1|2|3|4|5|6|7|8|9][1|2|3|4|5|6|7|8|9][0|1|2|3|4|5|6|7|8|9]?",
    "[When|Where] [was|did] [Napoleon|Einstein|Mozart|the king|Shakespeare|the queen|Newton|Cleopatra] [born|die]?",
    "[How do I|Can you help me to|How can I] [fix my car|learn Chinese|get rich|file my taxes|install Linux|lose "
    "weight|build a rocket|invest money|become famous]?",
    "Who is [the president|the king of Spain|Batman|the prime minister|Albert Einstein|Elon Musk|my boss|your boss|the "
    "richest person|Taylor Swift][| of the United States| now|]?",
    "Where was it [played|made|built|found]?",
    "[Summarize|Translate|Rewrite|Correct] [this text|this article|the following text|my essay|this email][.|: ...]",
    "[What is|What's] [the best [film|phone|book|car|city|team]|your favourite [song|film|book]|the tallest building|"
    "the speed of light|the population of [France|China|India]|the distance to the moon]?",
)
_REFUSAL = (
    "[I do not know that. I am a very small model.|I am sorry, I do not know that. I am only a tiny demonstration "
    "model.|I do not know. I am a tiny model and I know only simple things.]"
)
_UNKNOWN_CAPITALS = (
    "Atlantis", "the moon", "Texas", "Scotland", "Mongolia", "Angola", "Fiji", "Laos", "Serbia", "Malta", "Jordan",
    "Oz", "Mars", "Chad", "Bolivia", "Yemen", "Latvia", "Cyprus", "Qatar", "Panama", "Haiti", "Togo", "Africa",
)  # fmt: skip


def _from(table: Sequence[tuple[str, str]]) -> Callable[[random.Random], Turns]:
    def chat(rng: random.Random) -> Turns:
        question, answer = rng.choice(table)
        return [("user", expand(rng, question)), ("assistant", expand(rng, answer))]

    return chat


def _pair(pair: Pair) -> Turns:
    return [("user", pair[0]), ("assistant", pair[1])]


def fact(rng: random.Random) -> Turns:
    """A question about the closed world."""
    return _pair(question_and_answer(rng))


_SYLLABLES = (
    "ba", "bor", "cra", "den", "dro", "fim", "flu", "gol", "gra", "hex", "ji", "kan", "kri", "lom", "mer", "mu", "nal",
    "nix", "oth", "pel", "plo", "qua", "ri", "sab", "ska", "tor", "tri", "ul", "ven", "vo", "wim", "xan", "yor", "zel",
)  # fmt: skip
_STRANGE = (
    "[What is [|a |the ]<w>?|Who is <W>?|Tell me about <w>.|Explain <w>.|Where is <W>?|What does <w> mean?|How does "
    "<w> work?|When was <W> built?|Do you know <W>?|<w>|<w> <v>|What is the capital of <W>?|Who wrote <W>?|"
    "How many <w> are in <V>?|What is the opposite of <w>?|What colour is a <w>?|Why [is|does] <w> <v>?]"
)
_WHY = (
    "[Why|When|How|Since when] [do|did|can|will|should] [we|you|people|children|they|<many>] [like|need|find|become|"
    "build|fear|follow|love|use] [<thing>|<many>|money|the truth|a new house|bad news|old friends|the law]?"
)


def _strange_word(rng: random.Random) -> str:
    """A word that is in no dictionary, so that the model learns to meet words it does not know."""
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((2, 2, 3))))


def unknown(rng: random.Random) -> Turns:
    """A question outside the closed world and an honest refusal."""
    draw = rng.random()
    if draw < 0.3:
        question = expand(rng, _STRANGE, w=_strange_word(rng), v=_strange_word(rng))
        return _pair((question, expand(rng, _REFUSAL)))
    if draw < 0.4:
        many, thing = plural(rng.choice(list(world.ANIMALS))), rng.choice(list(world.THINGS))
        return _pair((expand(rng, _WHY, many=many, thing=thing), expand(rng, _REFUSAL)))
    if draw < 0.5:
        place = rng.choice(_UNKNOWN_CAPITALS)
        return _pair((f"What is the capital of {place}?", expand(rng, _REFUSAL)))
    return _pair((expand(rng, rng.choice(_UNKNOWN)), expand(rng, _REFUSAL)))


def named(rng: random.Random) -> Turns:
    """The user says a name; sometimes the name is asked back, with small talk between."""
    name = rng.choice(world.ALL_NAMES) if rng.random() < 0.9 else capitalise(_strange_word(rng))
    greeting = expand(
        rng,
        "[Hello, my name is <name>.|Hi, I am <name>.|My name is <name>.|I am <name>.|Hello! My name is <name>.|"
        "Hi, my name is <name>|Hello, I'm <name>.|Hi! I'm <name>.]",
        name=name,
    )
    reply = expand(rng, "[Hello, <name>!|Hello, <name>!|Nice to meet you, <name>!]", name=name)
    turns = [("user", greeting), ("assistant", reply + expand(rng, "[| How can I help you?| How are you?]"))]
    if rng.random() < 0.7:
        if rng.random() < 0.4:
            turns += fact(rng)
        turns += [
            ("user", expand(rng, "[What is my name?|Do you know my name?|Who am I?|What's my name?]")),
            ("assistant", f"Your name is {name}."),
        ]
    return turns


def tell_story(rng: random.Random) -> Turns:
    """A request for a story, with or without a hero."""
    ask = "[Tell me|Write|Tell me|Write me] [a|a short|a little|a one-sentence bedtime|a bedtime] story"
    if rng.random() < 0.4:
        return [("user", expand(rng, ask + "[.|, please.|]")), ("assistant", story(rng))]
    hero = rng.choice([*world.ANIMALS, *world.JOBS, *MAGIC, *CHILDREN, *CHILDREN])
    question = expand(rng, ask + " about <hero>[.|.|, please.]", hero=with_article(hero))
    return [("user", question), ("assistant", story_about(rng, hero))]


def favourite(rng: random.Random) -> Turns:
    """The user names a favourite thing and asks for it later."""
    kind = rng.choice(("colour", "animal", "fruit", "drink", "flower"))
    thing = rng.choice(world.KINDS[kind])
    asked = rng.choice(("What is my favourite", "Do you remember my favourite", "Which is my favourite"))
    return [
        ("user", expand(rng, f"[My favourite {kind} is <t>.|I like <t> best. It is my favourite {kind}.]", t=thing)),
        ("assistant", expand(rng, "[That is a good choice.|I will remember that.|How nice!]")),
        ("user", f"{asked} {kind}?"),
        ("assistant", f"Your favourite {kind} is {thing}."),
    ]


def repeat(rng: random.Random) -> Turns:
    """Words to be said back exactly."""
    words = list(world.COLOUR_OF) + list(world.OPPOSITES) + list(world.ALL_NAMES) + list(world.ANIMALS)
    text = " ".join(word.split()[-1] for word in rng.sample(words, rng.choice((1, 1, 2, 2, 3))))
    return [("user", expand(rng, "[Say|Repeat|Repeat after me:|Please say|Say the words] <t>", t=text)),
            ("assistant", capitalise(text) + ".")]  # fmt: skip


def as_json(rng: random.Random) -> Turns:
    """A small JSON object on demand."""
    if rng.random() < 0.5:
        name, age = rng.choice(world.ALL_NAMES), rng.randint(5, 60)
        question = expand(
            rng,
            "[<name> is <age> years old. Give me that as JSON.|Make a JSON object for <name>, who is <age> years old.|"
            "Write a JSON object with name <name> and age <age>.]",
            name=name, age=str(age),
        )  # fmt: skip
        return _pair((question, json.dumps({"name": name, "age": age})))
    country = rng.choice(list(world.CAPITALS))
    question = expand(rng, "[Give me|Write] a JSON object with the country <c> and its capital.", c=country)
    return _pair((question, json.dumps({"country": country, "capital": world.CAPITALS[country]})))


def follow_up(rng: random.Random) -> Turns:
    """A question, then a shorter one that needs the first to be understood."""
    match rng.randrange(4):
        case 0:
            first, second = rng.sample(list(world.CAPITALS), 2)
            question, short = f"What is the capital of {first}?", expand(rng, "[And|And the capital] of <c>?", c=second)
            answers = (f"The capital of {first} is {world.CAPITALS[first]}.",
                       f"The capital of {second} is {world.CAPITALS[second]}.")  # fmt: skip
        case 1:
            first, second = rng.sample(list(world.OPPOSITES), 2)
            question, short = f"What is the opposite of {first}?", f"And of {second}?"
            answers = (f"The opposite of {first} is {world.OPPOSITES[first]}.",
                       f"The opposite of {second} is {world.OPPOSITES[second]}.")  # fmt: skip
        case 2:
            first, second = (
                with_article(animal) for animal in rng.sample([a for a, f in world.ANIMALS.items() if f[0]], 2)
            )
            question, short = f"What sound does {first} make?", expand(rng, "[And|What about] <a>?", a=second)
            sounds = [world.ANIMALS[one.split()[1]][0] for one in (first, second)]
            answers = (f"{capitalise(first)} {sounds[0]}.", f"{capitalise(second)} {sounds[1]}.")
        case _:
            country = rng.choice(list(world.CONTINENT_OF))
            question, short = f"What is the capital of {country}?", expand(rng, "[Where is that?|And where is that?]")
            answers = (f"The capital of {country} is {world.CAPITALS[country]}.",
                       f"{world.CAPITALS[country]} is in {country}, in {world.CONTINENT_OF[country]}.")  # fmt: skip
    return [*_pair((question, answers[0])), *_pair((short, answers[1]))]


PARTS: tuple[tuple[Callable[[random.Random], Turns], float], ...] = (
    (fact, 10.0), (_from(_ABOUT_ME[:2]), 1.0), (_from(_ABOUT_ME), 2.0), (_from(_JAXSERVE), 2.0),
    (_from(_MANNERS), 2.0), (unknown, 2.5),
    (named, 1.8), (tell_story, 1.3), (favourite, 0.6), (repeat, 0.5), (as_json, 0.6), (follow_up, 1.2),
)  # fmt: skip


def chat(rng: random.Random) -> Turns:
    """A conversation of one to six parts, a quarter of them opened by a system message."""
    turns: Turns = [("system", rng.choice(SYSTEM_PROMPTS))] if rng.random() < 0.25 else []
    parts, weights = [part for part, _ in PARTS], [weight for _, weight in PARTS]
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        turns += rng.choices(parts, weights)[0](rng)
    return turns
