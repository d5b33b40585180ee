"""Questions about the closed world and their answers, each in many phrasings.

A `Topic` makes one (question, answer) pair. Answers are whole sentences and repeat what was asked,
so that a reader sees what was understood.
"""

import random
from collections.abc import Callable

from jaxserve.demo import world
from jaxserve.demo.grammar import capitalise, expand, join_words, with_article

Pair = tuple[str, str]
Topic = Callable[[random.Random], Pair]


def plural(noun: str) -> str:
    """More than one of an animal."""
    irregular = {"sheep": "sheep", "fish": "fish", "mouse": "mice", "wolf": "wolves", "fox": "foxes"}
    return irregular.get(noun, noun + "s")


def capital(rng: random.Random) -> Pair:
    """The capital of a country, asked forwards, backwards or as a yes/no question."""
    country = rng.choice(list(world.CAPITALS))
    city = world.CAPITALS[country]
    kind = rng.random()
    if kind < 0.7:
        question = expand(
            rng,
            "[[What is|What's|Do you know|what is|What is] the capital [of|city of|of] <country>?|"
            "Capital of <country>?|Tell me the capital of <country>.|Which city is the capital of <country>?]",
            country=country,
        )
        return question, f"The capital of {country} is {city}."
    if kind < 0.85:
        return (
            expand(rng, "[<city> is the capital of which country?|Which country has the capital <city>?]", city=city),
            f"{city} is the capital of {country}.",
        )
    other = rng.choice(list(world.CAPITALS.values()))
    if rng.random() < 0.5 or other == city:
        return f"Is {city} the capital of {country}?", f"Yes, {city} is the capital of {country}."
    return f"Is {other} the capital of {country}?", f"No, the capital of {country} is {city}."


def continent(rng: random.Random) -> Pair:
    """Where a country or a city lies."""
    country = rng.choice(list(world.CONTINENT_OF))
    where = world.CONTINENT_OF[country]
    if rng.random() < 0.7:
        question = expand(
            rng, "[Where is <country>?|On which continent is <country>?|Where can I find <country>?]", country=country
        )
        return question, f"{capitalise(country)} is in {where}."
    city = world.CAPITALS[country]
    return f"Where is {city}?", f"{city} is in {country}, in {where}."


def country_about(rng: random.Random) -> Pair:
    """Two sentences about a country."""
    country = rng.choice(list(world.CONTINENT_OF))
    question = expand(
        rng, "[Tell me about|What do you know about|Tell me something about] <country>[.|?]", country=country
    )
    where, city = world.CONTINENT_OF[country], world.CAPITALS[country]
    return question, f"{capitalise(country)} is a country in {where}. Its capital is {city}."


def country_list(rng: random.Random) -> Pair:
    """A numbered list of countries and their capitals."""
    count = rng.choice((2, 3, 3, 4, 5))
    countries = rng.sample([country for country in world.CAPITALS if not country.startswith("the")], count)
    number = rng.choice((str(count), world.NUMBERS[count]))
    question = expand(rng, "[List|Name|Give me] <number> countries and their capitals[.|.|, please.]", number=number)
    lines = [f"{i}. {country}: {world.CAPITALS[country]}" for i, country in enumerate(countries, 1)]
    return question, "\n".join(lines)


def sound(rng: random.Random) -> Pair:
    """The noise an animal makes."""
    animal = rng.choice([name for name, facts in world.ANIMALS.items() if facts[0]])
    noise = world.ANIMALS[animal][0]
    question = expand(
        rng,
        "[What sound does <one> make?|What does <one> say?|Which sound does <one> make?|How does <one> sound?]",
        one=with_article(animal),
    )
    return question, f"{capitalise(with_article(animal))} {noise}."


def animal_fact(rng: random.Random) -> Pair:
    """Where an animal lives, what it eats, its young or its legs."""
    animal = rng.choice(list(world.ANIMALS))
    _, home, food, young, _, legs = world.ANIMALS[animal]
    one = with_article(animal)
    match rng.randrange(4):
        case 0:
            question = expand(rng, "[Where does <one> live?|Where do <many> live?]", one=one, many=plural(animal))
            return question, f"{capitalise(one)} lives {home}."
        case 1:
            question = expand(
                rng, "[What does <one> eat?|What do <many> eat?|What do I feed <one>?]", one=one, many=plural(animal)
            )
            return question, f"{capitalise(one)} eats {food}."
        case 2:
            question = expand(
                rng, "[What is a baby <animal> called?|What do you call a young <animal>?]", animal=animal
            )
            return question, f"A young {animal} is called {with_article(young)}."
        case _:
            amount = world.NUMBERS[legs] + " legs" if legs else "no legs"
            return f"How many legs does {one} have?", f"{capitalise(one)} has {amount}."


def animal_about(rng: random.Random) -> Pair:
    """A short portrait of an animal."""
    animal = rng.choice(list(world.ANIMALS))
    one = with_article(animal)
    question = expand(
        rng,
        "[What is <one>?|Tell me about <many>.|Tell me something about <one>.|What do you know about <many>?|"
        "Describe <one>.]",
        one=one,
        many=plural(animal),
    )
    return question, describe_animal(animal)


def describe_animal(animal: str) -> str:
    """Home, food, character and noise of an animal, in two to three sentences."""
    noise, home, food, _, trait, _ = world.ANIMALS[animal]
    one = capitalise(with_article(animal))
    text = f"{one} is an animal that lives {home}. It eats {food} and it is {trait}."
    return text + (f" {one} {noise}." if noise else "")


def colour(rng: random.Random) -> Pair:
    """The colour of a thing."""
    thing = rng.choice(list(world.COLOUR_OF))
    question = expand(
        rng, "[[What|Which] [colour|color] is <thing>?|Tell me the [colour|color] of <thing>.]",
        thing=thing,
    )  # fmt: skip
    return question, f"{capitalise(thing)} is {world.COLOUR_OF[thing]}."


def mix(rng: random.Random) -> Pair:
    """What two colours make."""
    (first, second), result = rng.choice(list(world.MIXES.items()))
    if rng.random() < 0.5:
        first, second = second, first
    question = expand(
        rng, "[What do <a> and <b> make?|Which colour do I get if I mix <a> and <b>?|What is <a> mixed with <b>?]",
        a=first, b=second,
    )  # fmt: skip
    return question, f"{capitalise(first)} and {second} make {result}."


def opposite(rng: random.Random) -> Pair:
    """The opposite of a word, in both directions."""
    word, other = rng.choice(list(world.OPPOSITES.items()))
    if rng.random() < 0.4 and other != "light in weight":
        word, other = other, word
    question = expand(
        rng, "[What is|What's|Tell me|Give me] the opposite of <quote><word><quote>?", word=word,
        quote=rng.choice(("", "", '"')),
    )  # fmt: skip
    return question, f"The opposite of {word} is {other}."


def calendar(rng: random.Random) -> Pair:
    """Days, months and seasons: what comes before and after."""
    names, unit = rng.choice(((world.DAYS, "day"), (world.MONTHS, "month"), (world.SEASONS, "season")))
    index = rng.randrange(len(names))
    if rng.random() < 0.5:
        word, other = "after", names[(index + 1) % len(names)]
    else:
        word, other = "before", names[index - 1]
    question = expand(
        rng, "[What|Which] [<unit>|<unit>|] comes <word> <name>?", unit=unit, word=word, name=names[index]
    ).replace("  ", " ")
    return question, f"{capitalise(other)} comes {word} {names[index]}."


def lists(rng: random.Random) -> Pair:
    """All days, months, seasons, or numbers up to a bound."""
    match rng.randrange(5):
        case 0:
            question = expand(rng, "[What are|Tell me|List|Name] the days of the week[.|, please.]")
            return question, f"The days of the week are {join_words(world.DAYS)}."
        case 1:
            question = expand(rng, "[What are|Tell me|List|Name] the months of the year[.|, please.]")
            return question, f"The months of the year are {join_words(world.MONTHS)}."
        case 2:
            question = expand(rng, "[What are|Tell me|Name] the [four seasons|seasons][.|?]")
            return question, f"The four seasons are {join_words(world.SEASONS)}."
        case 3:
            last = rng.choice((3, 5, 5, 10, 10, 12, 20))
            first = world.NUMBERS[last]
            question = expand(
                rng, "[Count to|Can you count to|Please count to|Count from one to] <n>[.|, please.]",
                n=rng.choice((str(last), first)),
            )  # fmt: skip
            return question, capitalise(", ".join(world.NUMBERS[1 : last + 1])) + "."
        case _:
            season = rng.choice(world.SEASONS)
            question = expand(rng, "[What is <s> like?|What happens in <s>?|Tell me about <s>.]", s=season)
            return question, f"In {season}, {world.SEASON_TRAITS[season]}."


def kind_of(rng: random.Random) -> Pair:
    """Examples of a kind, or the kind of an example."""
    kind = rng.choice(list(world.KINDS))
    members = world.KINDS[kind]
    if rng.random() < 0.5:
        count = rng.choice((1, 2, 3, 3, 4))
        chosen = rng.sample(members, count)
        number = world.NUMBERS[count] if count > 1 else "a"
        noun = kind if count == 1 else kind + "s"
        question = expand(rng, "[Name|List|Tell me|Give me] <n> <noun>[.|, please.]", n=number, noun=noun)
        return question, f"{capitalise(join_words(chosen))}."
    if kind in ("colour", "drink", "planet"):
        member = rng.choice(members)
        return f"Is {member} a {kind}?", f"Yes, {member} is a {kind}."
    member, asked = with_article(rng.choice(members)), rng.choice(list(world.KINDS))
    if asked == kind or (asked, kind) in (("animal", "bird"), ("animal", "insect")) or rng.random() < 0.5:
        return f"Is {member} {with_article(kind)}?", f"Yes, {member} is {with_article(kind)}."
    if (kind, asked) in (("animal", "bird"), ("animal", "insect"), ("fruit", "colour")):
        return f"Is {member} {with_article(kind)}?", f"Yes, {member} is {with_article(kind)}."
    return f"Is {member} {with_article(asked)}?", f"No, {member} is {with_article(kind)}."


def thing(rng: random.Random) -> Pair:
    """What a thing is."""
    name, meaning = rng.choice(list(world.THINGS.items()))
    question = expand(
        rng,
        "[[What is|What's|what is|Do you know what] <name>?|Tell me what <name> is.|Explain what <name> is.]",
        name=name,
    )
    if question.startswith("Do you"):
        question = f"Do you know what {name} is?"
    return question, f"{capitalise(name)} is {meaning}."


def job(rng: random.Random) -> Pair:
    """What a person does at work."""
    name, work = rng.choice(list(world.JOBS.items()))
    if rng.random() < 0.6:
        question = expand(rng, "[What does <one> do?|What is <one>?|What is the job of <one>?]", one=with_article(name))
        return question, f"{capitalise(with_article(name))} {work}."
    return f"Who {work}?", f"{capitalise(with_article(name))} {work}."


def tool(rng: random.Random) -> Pair:
    """What a tool is for, or which tool serves a purpose."""
    name, purpose = rng.choice(list(world.TOOLS.items()))
    if rng.random() < 0.6:
        question = expand(rng, "[What is <name> for?|What do I do with <name>?|What can I use <name> for?]", name=name)
        if name == "scissors":
            question = question.replace("is scissors", "are scissors")
    else:
        question = f"What do I need to {purpose}?"
    return question, f"You use {name} to {purpose}."


def amount(rng: random.Random) -> Pair:
    """How many of something there are."""
    if rng.random() < 0.25:
        shape, sides = rng.choice(list(world.SHAPES.items()))
        return f"How many sides does a {shape} have?", f"A {shape} has {sides} sides."
    asked, answer = rng.choice(list(world.COUNTS.items()))
    return f"How many {asked}?", answer


def arithmetic(rng: random.Random) -> Pair:
    """Sums, differences and products of small numbers, in figures or in words."""
    sign = rng.choice("++--*")
    first, second = rng.randint(0, 10), rng.randint(0, 10)
    if sign == "-" and first < second:
        first, second = second, first
    result = {"+": first + second, "-": first - second, "*": first * second}[sign]
    word = {"+": "plus", "-": "minus", "*": "times"}[sign]
    if rng.random() < 0.35 and result <= 20:
        a, b, total = world.NUMBERS[first], world.NUMBERS[second], world.NUMBERS[result]
        question = expand(rng, "[What is|What's|How much is] <a> <word> <b>?", a=a, b=b, word=word)
        return question, f"{capitalise(a)} {word} {b} is {total}."
    symbol = rng.choice((word, sign))
    question = expand(
        rng, "[What is|What's|How much is|Calculate|what is|] <a> <s> <b>[?|]", a=str(first), b=str(second), s=symbol
    ).strip()
    return question, f"{first} {symbol} {second} is {result}."


def compare(rng: random.Random) -> Pair:
    """Which of two numbers is larger or smaller."""
    first, second = rng.sample(range(21), 2)
    word = rng.choice(("larger", "smaller", "bigger"))
    result = min(first, second) if word == "smaller" else max(first, second)
    other = first + second - result
    return f"Which number is {word}, {first} or {second}?", f"{result} is {word} than {other}."


TOPICS: tuple[tuple[Topic, float], ...] = (
    (capital, 4.0), (continent, 1.5), (country_about, 1.0), (country_list, 1.0), (sound, 1.2), (animal_fact, 2.0),
    (animal_about, 1.5), (colour, 1.5), (mix, 0.4), (opposite, 1.8), (calendar, 1.5), (lists, 1.2), (kind_of, 1.5),
    (thing, 2.0), (job, 1.0), (tool, 1.0), (amount, 1.0), (arithmetic, 4.0), (compare, 0.5),
)  # fmt: skip


def question_and_answer(rng: random.Random) -> Pair:
    """One pair from the whole closed world."""
    topic = rng.choices([topic for topic, _ in TOPICS], [weight for _, weight in TOPICS])[0]
    return topic(rng)
