"""Plain texts: portraits of people and places, days, instructions, and the prompts that people try first."""

import random
from collections.abc import Callable

from jaxserve.demo import world
from jaxserve.demo.chats import ABILITIES, IDENTITY, LIMITS
from jaxserve.demo.grammar import capitalise, expand, join_words, with_article
from jaxserve.demo.knowledge import describe_animal, question_and_answer

_HOW_TO = {
    "make tea": "First, boil some water. Then put the tea into a cup and pour the hot water over it. Wait a few "
    "minutes. [Add a little milk or honey if you like.|Now you can drink it, but be careful, it is hot.]",
    "plant a seed": "First, fill a pot with earth. Then make a small hole and put the seed into it. Cover it with "
    "earth and give it some water. Put the pot in the sun and wait. [After a few days, a small green leaf will come "
    "up.|Do not forget to water it.]",
    "make a sandwich": "First, cut two slices of bread. Then put butter on the bread. Add cheese and a slice of "
    "tomato. Put the slices together. [Now you can eat it.|Enjoy your meal!]",
    "wash your hands": "First, turn on the water. Then wet your hands and take some soap. Rub your hands together and "
    "count to twenty. Wash the soap away and dry your hands.",
    "paint a picture": "First, take some paper, a brush and paints. Then think of something that you like. Begin with "
    "the big shapes, and add the small things later. Let the picture dry.",
    "fly a kite": "First, wait for a day with wind. Then go to an open field. Hold the string and run. When the kite "
    "is up in the air, let out more string.",
    "make soup": "First, wash and cut some vegetables. Then put them into a pot with water and a little salt. Cook "
    "them for half an hour. [Eat the soup while it is hot.|Eat it with fresh bread.]",
    "clean a room": "First, open the window. Then put all things in their places. Sweep the floor and wipe the table. "
    "Now the room is clean.",
    "build a snowman": "First, roll three balls of snow: a big one, a middle one and a small one. Put them on top of "
    "each other. Then add a carrot for the nose and stones for the eyes.",
    "write a letter": "First, take some paper and a pen. Then write the date and a greeting. Tell your friend what you "
    "did and how you are. Sign your name, and put the letter into an envelope.",
    "bake bread": "First, mix flour, water, salt and yeast. Then knead the dough and let it rest for an hour. Bake it "
    "in a hot oven until it is brown. [Let it cool before you cut it.|The house will smell very good.]",
    "feed a cat": "First, wash the bowl. Then put some food into it, and fill another bowl with fresh water. Call the "
    "cat, and wait. A cat eats when it wants to.",
    "start the server": "First, install jaxserve. Then type jaxserve serve and the name of a model. Wait until the "
    "server says that it is ready. Now you can send it a question.",
}

_PROMPTS = (
    "The future of AI is [hard to know, but it will be made by people who ask good questions|open. Some models will be "
    "very large, and some will be tiny like me|in the hands of the people who build it]. [Small models can do small "
    "things, and large models can do more.|I am only a tiny demonstration model, so I cannot see the future.|It may "
    "help people to learn, to write and to build.]",
    "The president of the United States is [a person I cannot name. I am a tiny model and I do not know the "
    "news.|someone I do not know. I am a tiny demonstration model, and I know only simple things.]",
    "San Francisco is a city [in California, in the United States. It lies by the sea, and it has many hills and a "
    "famous red bridge.|by the sea in the United States. It is known for its hills, its fog and its bridge.]",
    "The meaning of life is [a question that a tiny model cannot answer|hard to say]. [Be kind, learn something every "
    "day, and help your friends.|Many people say that it is love, friends and good work.]",
    "The quick brown fox jumps over the lazy dog.[| The dog opens one eye and goes back to sleep.]",
    "In the beginning, [it was dark and quiet. Then the sun came up, and the day began|there was only the sea. Then "
    "came the land, the trees and the animals].",
    "My favourite <kind> is <member>. [I like it very much.|What is yours?|It makes me happy.]",
    "The best thing about <season> is that <trait>. [I like to walk in the park then.|It is a good time for a walk.]",
    "Roses are red, violets are blue, [the sun is warm, and so are you|the bread is fresh, the soup is too].",
    "To be a good friend, you must [listen, help and be honest|be kind and keep your word].",
    "jaxserve is a server for language models, written in JAX. [It answers many requests at the same time.|It keeps "
    "its "
    "memory in pages, so that many requests can run together.] [It speaks the OpenAI protocol.|It can run on a CPU or "
    "on GPUs.]",
    "Continuous batching means that new requests join the running batch at every step. [No request has to wait until "
    "the others are done.|When one request is done, another takes its place at once.]",
    "A paged KV cache keeps what the model has already read in small pages. [When a request is done, its pages are "
    "free for others.|So memory is not wasted, and requests can share pages.]",
    "JAX is a Python library for fast computing with arrays. [It compiles programs for CPUs, GPUs and TPUs.|It can "
    "also find the gradient of a function.]",
    "The weather today is [cold|warm|fine|rainy|windy]. [We will stay at home and read.|We will go to the park and "
    "play.|The [children|birds|dogs] are happy.]",
)


def person(rng: random.Random) -> str:
    """Someone introduces herself or himself, or is introduced."""
    they = rng.choice(("she", "he"))
    name, work = rng.choice(world.NAMES[they]), rng.choice(list(world.JOBS))
    country = rng.choice(list(world.CAPITALS))
    values = {
        "name": name, "job": with_article(work), "city": world.CAPITALS[country], "country": country, "they": they,
        "pet": with_article(rng.choice(("cat", "dog", "rabbit", "horse", "mouse", "turtle"))),
        "food": rng.choice(("bread", "soup", "apples", "cheese", "rice", "cake", "fish")),
        "hobby": rng.choice(("sing", "read books", "walk in the forest", "paint", "cook", "swim", "play the piano")),
    }  # fmt: skip
    if rng.random() < 0.6:
        template = (
            "[Hello, my name is <name>|Hello, my name is <name>|Hi, my name is <name>|My name is <name>|I am <name>] "
            "[and I am <job>|and I live in <city>, in <country>|and I come from <country>]. [I live in <city>.|I have "
            "<pet>.|I work every day.] [I like to <hobby>.|I like <food>.|In the evening I <hobby>.] "
            "[It is nice to meet you.|What is your name?|I am happy to be here.]"
        )
    else:
        template = (
            "<Name> is <job>. [<They> lives in <city>, in <country>.|<They> comes from <country>.] <They> has <pet>, "
            "and <they> likes to <hobby>. [Every morning, <they> eats <food>.|<They> often eats <food>.]"
        )
    return expand(rng, template, **values)


def day(rng: random.Random) -> str:
    """What somebody did on a day of the week."""
    they = rng.choice(("she", "he"))
    values = {"day": rng.choice(world.DAYS), "name": rng.choice(world.NAMES[they]), "they": they}
    template = (
        "[On <day>|Last <day>|Every <day>|Today is <day>. In the morning], <name> got up [early|late|at seven] and "
        "[ate breakfast|drank some tea|fed the cat|opened the window]. Then <they> went to [school|work|the market|the "
        "library|the park] [on foot|by bus|by bicycle]. There <they> [met a friend|read a book|bought some "
        "apples|worked "
        "until noon]. In the evening, <they> [cooked soup|played a game|wrote a letter|listened to music] and went to "
        "bed. It was a [good|long|quiet|happy] day."
    )
    return expand(rng, template, **values)


def how_to(rng: random.Random) -> str:
    """An instruction in a few steps."""
    task, steps = rng.choice(list(_HOW_TO.items()))
    opening = expand(rng, "[How to <task>: |To <task>, do this. |This is how you <task>. |]", task=task)
    return opening + expand(rng, steps)


def place(rng: random.Random) -> str:
    """A country, its capital, and sometimes a neighbour on the continent."""
    country = rng.choice(list(world.CONTINENT_OF))
    continent, city = world.CONTINENT_OF[country], world.CAPITALS[country]
    sentence = f"The capital of {country} is {city}."
    other = rng.choice([c for c in world.CONTINENTS[continent] if c != country])
    more = rng.choice(
        (
            f" {capitalise(country)} is a country in {continent}.",
            f" The capital of {other} is {world.CAPITALS[other]}.",
            f" {city} is a city in {continent}.",
            "",
        )
    )
    if rng.random() < 0.3:
        return f"{capitalise(country)} is a country in {continent}. {sentence}"
    return sentence + more


def animal(rng: random.Random) -> str:
    """A portrait of an animal."""
    return describe_animal(rng.choice(list(world.ANIMALS)))


def thing(rng: random.Random) -> str:
    """What one or two things are."""
    chosen = rng.sample(list(world.THINGS.items()), rng.choice((1, 2)))
    return " ".join(f"{capitalise(name)} is {meaning}." for name, meaning in chosen)


def prompt(rng: random.Random) -> str:
    """The continuation of a prompt that people try first."""
    kind, season = rng.choice(("colour", "fruit", "flower", "animal")), rng.choice(world.SEASONS)
    return expand(
        rng, rng.choice(_PROMPTS), kind=kind, member=rng.choice(world.KINDS[kind]), season=season,
        trait=world.SEASON_TRAITS[season],
    )  # fmt: skip


def about_me(rng: random.Random) -> str:
    """The model's own portrait."""
    return f"{IDENTITY} {rng.choice(ABILITIES + LIMITS)}"


def facts(rng: random.Random) -> str:
    """One to three answers in a row, a question with its answer, or the plain Q and A form."""
    pairs = [question_and_answer(rng) for _ in range(rng.choice((1, 2, 3)))]
    form = rng.randrange(3)
    if form == 0:
        return "\n".join(f"Q: {question}\nA: {answer}" for question, answer in pairs)
    if form == 1:
        question, answer = pairs[0]
        return f"{capitalise(question)} {answer}"
    return " ".join(answer.replace("\n", " ") for _, answer in pairs)


def sums(rng: random.Random) -> str:
    """A short row of sums."""
    rows: list[str] = []
    for _ in range(rng.choice((1, 2, 3))):
        first, second = rng.randint(0, 10), rng.randint(0, 10)
        rows.append(f"{first} + {second} = {first + second}")
    return "\n".join(rows)


def lists(rng: random.Random) -> str:
    """Days, months, numbers and letters in their order."""
    return rng.choice(
        (
            f"The days of the week are {join_words(world.DAYS)}.",
            f"The months of the year are {join_words(world.MONTHS)}.",
            f"The four seasons are {join_words(world.SEASONS)}.",
            ", ".join(world.DAYS) + ".",
            ", ".join(capitalise(n) if i == 0 else n for i, n in enumerate(world.NUMBERS[1:11])) + ".",
            ", ".join(str(n) for n in range(1, rng.choice((10, 12, 20)) + 1)) + ".",
            " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ"),
        )
    )


PARTS: tuple[tuple[Callable[[random.Random], str], float], ...] = (
    (person, 2.5), (day, 1.5), (how_to, 1.5), (place, 2.0), (animal, 1.2), (thing, 1.0), (prompt, 3.0),
    (about_me, 0.6), (facts, 1.5), (sums, 0.6), (lists, 0.6),
)  # fmt: skip


def prose(rng: random.Random) -> str:
    """One plain text of any sort."""
    return rng.choices([part for part, _ in PARTS], [weight for _, weight in PARTS])[0](rng)
