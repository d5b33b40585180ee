"""`IncrementalDetokenizer`: tokens to text as they come, never a broken character."""

import codecs
from collections.abc import Sequence

from jaxserve.text.tokenizer import Tokenizer, strip_leading_spaces

_LONGEST_CHARACTER = 4  # bytes of one UTF-8 character
_MAX_HELD_TOKENS = 8  # a character never takes more byte tokens; more that decode to U+FFFD are really broken
_PROMPT_TAIL = 64  # prompt tokens looked at for context, special ones among them


class IncrementalDetokenizer:
    """The text of one output, piece by piece.

    The pieces joined are what the output adds to the prompt's text: a SentencePiece word after a
    prompt keeps its space, at the very start it has none. A character is emitted once all its bytes
    are there; U+FFFD stands only for bytes that are no UTF-8 whatever follows, or for a cut end.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> None:
        if tokenizer.pieces is None:
            self._impl = _WindowDecoder(tokenizer, prompt_token_ids, skip_special_tokens, spaces_between_special_tokens)
        else:  # these decoders never put a space between tokens, special or not
            self._impl = _ByteDecoder(tokenizer, prompt_token_ids, skip_special_tokens)

    def push(self, ids: Sequence[int]) -> str:
        """The text that became certain with these tokens, possibly empty."""
        return self._impl.push(ids)

    def finish(self) -> str:
        """What was still held back: U+FFFD where the output ends inside a character. Call once."""
        return self._impl.finish()


class _ByteDecoder:
    """Joins the tokens' bytes and decodes UTF-8 incrementally: at most three bytes are ever held."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skip_special_tokens: bool) -> None:
        assert tokenizer.pieces is not None
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        tail = self._last_bytes(prompt_token_ids)
        self._num_stripped_spaces = 0 if tail else tokenizer.pieces.num_stripped_spaces
        self._utf8.decode(tail)
        # A prompt of token ids may end inside a character: the output may complete it, but does not own its wreck.
        self._prompt_is_cut = self._utf8.getstate()[0] != b""

    def _last_bytes(self, prompt_token_ids: Sequence[int]) -> bytes:
        tail = b""
        for token_id in reversed(prompt_token_ids):
            if len(tail) >= _LONGEST_CHARACTER:
                break
            tail = self._piece(token_id) + tail
        return tail[-_LONGEST_CHARACTER:]

    def _piece(self, token_id: int) -> bytes:
        return b"" if token_id in self._skipped else self._tokenizer.token_bytes(token_id)

    def push(self, ids: Sequence[int]) -> str:
        return self._trim(self._utf8.decode(b"".join(map(self._piece, ids))))

    def finish(self) -> str:
        return self._trim(self._utf8.decode(b"", final=True))

    def _trim(self, text: str) -> str:
        if not text:
            return text
        if self._prompt_is_cut:
            self._prompt_is_cut = False
            return text.removeprefix("\ufffd")
        if self._num_stripped_spaces:
            stripped = strip_leading_spaces(text, self._num_stripped_spaces)
            self._num_stripped_spaces = 0 if stripped else self._num_stripped_spaces - len(text)
            return stripped
        return text


class _WindowDecoder:
    """For other decoders: decodes the new tokens with and without a little context; the difference is their text.

    The context is the last few tokens that made whole characters: it carries what decides about
    spacing, and no broken byte that would spoil the characters after it.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_token_ids: Sequence[int],
        skip_special_tokens: bool,
        spaces_between_special_tokens: bool,
    ) -> None:
        self._decode = tokenizer.backend.decode
        self._skip = skip_special_tokens
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._held: list[int] = []
        self._unspaced = {} if skip_special_tokens or spaces_between_special_tokens else tokenizer.added_tokens
        self._last_was_unspaced = False
        self._context = self._prompt_context(prompt_token_ids)

    def _prompt_context(self, prompt_token_ids: Sequence[int]) -> list[int]:
        """The fewest tokens at the prompt's end that are text without a broken character, else none."""
        tail = [token_id for token_id in prompt_token_ids[-_PROMPT_TAIL:] if token_id not in self._skipped]
        for num_tokens in range(1, min(len(tail), _MAX_HELD_TOKENS) + 1):
            if "\ufffd" not in self._decode(tail[-num_tokens:], skip_special_tokens=self._skip):
                return tail[-num_tokens:]
        return []

    def push(self, ids: Sequence[int]) -> str:
        return "".join(self._step(token_id) for token_id in ids if token_id not in self._skipped)

    def finish(self) -> str:
        text = self._fresh_text()
        self._held = []
        return text

    def _step(self, token_id: int) -> str:
        self._held.append(token_id)
        text = self._fresh_text()
        if text.endswith("\ufffd") and len(self._held) < _MAX_HELD_TOKENS:
            return ""
        if text and "\ufffd" not in text:
            self._context = self._held
        self._held = []
        was_unspaced, self._last_was_unspaced = self._last_was_unspaced, token_id in self._unspaced
        return self._unspaced[token_id] if was_unspaced and self._last_was_unspaced else text

    def _fresh_text(self) -> str:
        if not self._held:
            return ""
        before = self._decode(self._context, skip_special_tokens=self._skip)
        return self._decode(self._context + self._held, skip_special_tokens=self._skip)[len(before) :]
