"""Log probabilities in the three shapes clients know: legacy completions, chat, and prompt positions."""

from collections.abc import Sequence
from typing import Any

from jaxserve.core.outputs import Logprob
from jaxserve.text.tokenizer import Tokenizer

Candidates = dict[int, Logprob]

_LOWEST = -9999.0  # JSON has no -inf


def finite(logprob: float) -> float:
    return max(logprob, _LOWEST)


class LegacyLogprobs:
    """Builds the `logprobs` object of a completion choice, in one piece or chunk by chunk.

    The first candidate of a position is the token that is in the sequence. text_offset counts
    characters of the tokens' own bytes, so that it is the same streamed or not.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._offset = offset

    def prompt(self, token_ids: Sequence[int], positions: Sequence[Candidates | None], text: str) -> dict[str, Any]:
        """An echoed prompt; its first token has no probability. text: the prompt as echoed."""
        value = _empty()
        self._offset = 0
        for index, token_id in enumerate(token_ids):
            candidates = positions[index] if index < len(positions) else None
            piece = self._tokenizer.token_bytes(token_id)
            if index == 0 and not text.startswith(piece.decode("utf-8", "replace")):
                # A BOS that the tokenizer put in front, or a space that it takes away at a text's start.
                piece = b"" if token_id in self._tokenizer.special_ids else piece.lstrip(b" ")
            self._append(value, token_id, piece, candidates)
        return value

    def generated(self, token_ids: Sequence[int], positions: Sequence[Candidates]) -> dict[str, Any]:
        """Tokens of the output, the one that ended it included."""
        value = _empty()
        for token_id, candidates in zip(token_ids, positions, strict=True):
            piece = b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)
            self._append(value, token_id, piece, candidates)
        return value

    def _append(self, value: dict[str, Any], token_id: int, piece: bytes, candidates: Candidates | None) -> None:
        value["text_offset"].append(self._offset)
        value["tokens"].append(self._text(token_id))
        value["token_logprobs"].append(None if candidates is None else finite(candidates[token_id].logprob))
        value["top_logprobs"].append(None if candidates is None else self._top(candidates))
        # A character counts where its first byte is.
        self._offset += sum(1 for byte in piece if byte & 0xC0 != 0x80)

    def _top(self, candidates: Candidates) -> dict[str, float]:
        """Best first; of tokens with the same text (parts of characters) the best one is shown."""
        best = sorted(candidates.items(), key=lambda item: -item[1].logprob)
        top: dict[str, float] = {}
        for token_id, entry in best:
            top.setdefault(self._text(token_id), finite(entry.logprob))
        return top

    def _text(self, token_id: int) -> str:
        return self._tokenizer.token_text(token_id)


def _empty() -> dict[str, Any]:
    return {"text_offset": [], "token_logprobs": [], "tokens": [], "top_logprobs": []}


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    return {name: first[name] + second[name] for name in first}


def chat_logprobs(
    tokenizer: Tokenizer, token_ids: Sequence[int], positions: Sequence[Candidates], num_top: int
) -> dict[str, Any]:
    """The `logprobs` object of a chat choice. num_top: alternatives shown a token."""

    def entry(token_id: int, logprob: Logprob) -> dict[str, Any]:
        piece = tokenizer.token_bytes(token_id)
        text = piece.decode("utf-8", "replace")
        return {"token": text, "logprob": finite(logprob.logprob), "bytes": list(piece)}

    content: list[dict[str, Any]] = []
    for token_id, candidates in zip(token_ids, positions, strict=True):
        best = sorted(candidates.items(), key=lambda item: item[1].rank or 1)[:num_top]
        top = [entry(candidate, logprob) for candidate, logprob in best]
        content.append({**entry(token_id, candidates[token_id]), "top_logprobs": top})
    return {"content": content, "refusal": None}


def prompt_logprobs(positions: Sequence[Candidates | None]) -> list[dict[str, Any] | None]:
    """The `prompt_logprobs` extra: token id to logprob, rank and text; the first position has none."""
    return [None if candidates is None else _by_id(candidates) for candidates in positions]


def _by_id(candidates: Candidates) -> dict[str, Any]:
    return {
        str(token_id): {"logprob": finite(entry.logprob), "rank": entry.rank, "decoded_token": entry.decoded_token}
        for token_id, entry in candidates.items()
    }
