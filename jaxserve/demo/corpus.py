"""The training text of the bundled demonstration model, made by this repository and by nothing else.

A document is a plain text (stories, portraits, instructions) or a conversation. The same seed gives
the same documents on every machine: only `random.Random(seed)` decides.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from jaxserve.demo.chats import Turns, chat
from jaxserve.demo.prose import prose
from jaxserve.demo.stories import story

TRAIN_SEED = 1
HELD_OUT_SEED = 2
CHAT_SHARE = 0.68
STORY_SHARE = 0.12

_WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")


@dataclass(frozen=True)
class Document:
    """One training text: `text` alone, or the (role, content) `turns` of a conversation."""

    text: str = ""
    turns: tuple[tuple[str, str], ...] = ()

    def plain(self) -> str:
        """All words of the document without the marks of a conversation."""
        return self.text or "\n".join(content for _, content in self.turns)


def document(rng: random.Random) -> Document:
    """One document: a conversation, a story or another plain text."""
    draw = rng.random()
    if draw < CHAT_SHARE:
        turns: Turns = chat(rng)
        return Document(turns=tuple(turns))
    return Document(text=story(rng) if draw < CHAT_SHARE + STORY_SHARE else prose(rng))


def documents(seed: int, count: int | None) -> Iterator[Document]:
    """`count` documents (None: without end) that depend on `seed` alone."""
    rng = random.Random(seed)
    for _ in itertools.repeat(None) if count is None else range(count):
        yield document(rng)


def held_out(count: int, num_training_documents: int) -> list[Document]:
    """`count` documents that are not among the first `num_training_documents` of the training seed."""
    seen = set(documents(TRAIN_SEED, num_training_documents))
    fresh: list[Document] = []
    rng = random.Random(HELD_OUT_SEED)
    while len(fresh) < count:
        candidate = document(rng)
        if candidate not in seen:
            fresh.append(candidate)
    return fresh


def words(text: str) -> set[str]:
    """The words of `text` in lower case, without figures and punctuation."""
    return {match.lower() for match in _WORD.findall(text)}


def vocabulary(seed: int = TRAIN_SEED, count: int = 20000) -> set[str]:
    """Every word that `count` documents use."""
    found: set[str] = set()
    for item in documents(seed, count):
        found |= words(item.plain())
    return found
