"""A very small template language: the corpus is written in it.

`[a|b|c]` stands for one of its branches (they may nest), `<name>` for a value and `<Name>` for the
same value with a capital first letter. `expand(rng, "[Hi|Hello], <name>!", name="Ann")` -> "Hi, Ann!".
"""

import random
import re
from collections.abc import Sequence

_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_VALUE = re.compile(r"<([A-Za-z_]+)>")

VOWELS = "aeiou"


def capitalise(text: str) -> str:
    """`text` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def with_article(noun: str) -> str:
    """ "an owl", "a fox"."""
    return f"an {noun}" if noun[0] in VOWELS else f"a {noun}"


def expand(rng: random.Random, template: str, **values: str) -> str:
    """One text of `template`: branches chosen by `rng`, values filled in.

    Raises KeyError for a value the template names and the caller does not give.
    """
    text = template
    while _CHOICE.search(text):
        text = _CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)

    def fill(match: re.Match[str]) -> str:
        key = match[1]
        return values[key] if key in values else capitalise(values[key.lower()])

    return _VALUE.sub(fill, text)


def join_words(words: Sequence[str]) -> str:
    """ "a, b and c"."""
    if len(words) == 1:
        return words[0]
    return ", ".join(words[:-1]) + " and " + words[-1]
