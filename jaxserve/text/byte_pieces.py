"""The exact bytes behind every token, for the two decoder families that Llama-like checkpoints use.

Knowing each token's bytes makes detokenizing a matter of joining bytes and decoding UTF-8: linear,
exact for any split, and the same whether done at once or token by token.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer as Backend

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class BytePieces:
    """pieces: bytes of each token id, empty for ids without a token.

    num_stripped_spaces: spaces that the decoder removes at the very start of a text (SentencePiece's dummy prefix).
    """

    pieces: list[bytes]
    num_stripped_spaces: int = 0


def byte_pieces(backend: Backend) -> BytePieces | None:
    """The byte view of a tokenizer, or None if its decoder is of another family (WordPiece, CTC and the like)."""
    steps = _decoder_steps(backend)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return BytePieces(_collect(backend, _byte_level_piece))
    replacements = _byte_fallback_replacements(steps)
    if replacements is None:
        return None
    stripped = int(steps[-1]["start"]) if steps[-1]["type"] == "Strip" else 0

    def piece(token: str) -> bytes:
        for old, new in replacements:
            token = token.replace(old, new)
        match = _BYTE_TOKEN.fullmatch(token)
        return bytes([int(match[1], 16)]) if match else token.encode("utf-8", "replace")

    return BytePieces(_collect(backend, piece), stripped)


def _decoder_steps(backend: Backend) -> list[dict[str, Any]]:
    decoder: Any = backend.decoder
    if decoder is None:
        return []
    # The state is the decoder's JSON; Tokenizer.to_str would serialise the whole vocabulary as well.
    state: dict[str, Any] = json.loads(decoder.__getstate__())
    return state["decoders"] if state["type"] == "Sequence" else [state]


def _byte_fallback_replacements(steps: list[dict[str, Any]]) -> list[tuple[str, str]] | None:
    """The literal replacements of a `Replace* ByteFallback Fuse [Strip one space, left]` chain, None for any other."""
    types = [step["type"] for step in steps]
    if "ByteFallback" not in types:
        return None
    start = types.index("ByteFallback")
    heads, tail = steps[:start], types[start:]
    if any(step["type"] != "Replace" or "String" not in step["pattern"] for step in heads):
        return None
    if tail not in (["ByteFallback", "Fuse"], ["ByteFallback", "Fuse", "Strip"]):
        return None
    if tail[-1] == "Strip" and (steps[-1]["content"] != " " or steps[-1]["stop"] != 0):
        return None
    return [(step["pattern"]["String"], step["content"]) for step in heads]


def _collect(backend: Backend, piece: Any) -> list[bytes]:
    vocab = backend.get_vocab(with_added_tokens=True)
    pieces = [b""] * (max(vocab.values(), default=-1) + 1)
    for token, token_id in vocab.items():
        pieces[token_id] = piece(token)
    return pieces


def _byte_level_table() -> dict[int, str]:
    """Undoes GPT-2's printable stand-ins for bytes; every Latin-1 character that is none maps out of Latin-1."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = dict.fromkeys(range(0x100), "\uffff")
    table |= {code: chr(code) for code in printable}
    others = [code for code in range(0x100) if code not in set(printable)]
    return table | {0x100 + index: chr(code) for index, code in enumerate(others)}


_BYTE_LEVEL = _byte_level_table()


def _byte_level_piece(token: str) -> bytes:
    try:
        return token.translate(_BYTE_LEVEL).encode("latin-1")
    except (
        UnicodeEncodeError
    ):  # an added token that is plain text, such as one with a space or a letter outside the table
        return token.encode("utf-8", "replace")
