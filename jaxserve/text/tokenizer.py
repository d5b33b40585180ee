"""`Tokenizer`: text to token ids and back, over the checkpoint's own fast tokenizer."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer

from jaxserve.core.errors import ConfigError, RequestError
from jaxserve.text.byte_pieces import BytePieces, byte_pieces

_FILES = "tokenizer.json (or tokenizer.model, or vocab.json with merges.txt) and tokenizer_config.json"
_ANY_OF = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")


class Tokenizer:
    """A Hugging Face tokenizer with a byte-exact decoder; safe to share between threads.

    Text special to the vocabulary ("</s>" typed by a user) becomes the special token, as in transformers.

    hf: the transformers tokenizer it stands on. pieces: each token's bytes, or None where the
    checkpoint's decoder does not work byte by byte.
    """

    def __init__(self, hf: Any) -> None:
        backend = getattr(hf, "backend_tokenizer", None)
        if not isinstance(backend, Backend):
            raise ConfigError(
                f"the tokenizer {type(hf).__name__} has no fast backend: add a tokenizer.json to the checkpoint"
            )
        # Truncation and padding are state of the backend: left on, they would silently cut prompts.
        backend.no_truncation()
        backend.no_padding()
        self.hf = hf
        self.backend: Backend = backend
        self.pieces: BytePieces | None = byte_pieces(backend)
        added = backend.get_added_tokens_decoder()
        self.added_tokens: dict[int, str] = {token_id: str(token.content) for token_id, token in added.items()}
        self.special_ids: frozenset[int] = frozenset(token_id for token_id, token in added.items() if token.special)

    @classmethod
    def load(cls, path: str | Path, revision: str | None = None) -> "Tokenizer":
        """Load from a local directory or a hub id; code from the checkpoint is never run.

        Raises ConfigError naming the files needed where there is no usable tokenizer.
        """
        directory = Path(path)
        if directory.is_absolute() and not directory.is_dir():
            raise ConfigError(f"no directory {directory}: expected one with {_FILES}")
        if directory.is_dir() and not any((directory / name).is_file() for name in _ANY_OF):
            raise ConfigError(f"no tokenizer in {directory}: expected {_FILES}; name another one with --tokenizer")
        try:
            hf = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=False)
        except Exception as error:  # transformers and tokenizers raise bare exceptions of many kinds here
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ConfigError(f"cannot load a tokenizer from {path}: {reason} (expected {_FILES})") from error
        return cls(hf)

    @cached_property
    def vocab_size(self) -> int:
        """Ids run over [0, vocab_size), added tokens included."""
        return max(self.backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @cached_property
    def eos_token_ids(self) -> list[int]:
        eos = self.hf.eos_token_id
        return [] if eos is None else [eos] if isinstance(eos, int) else list(eos)

    @property
    def bos_token_id(self) -> int | None:
        return self.hf.bos_token_id

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """Names that chat templates read: bos_token, eos_token and so on."""
        return {name: str(token) for name, token in self.hf.special_tokens_map.items() if isinstance(token, str)}

    @cached_property
    def max_bytes_per_token(self) -> int | None:
        """The most bytes of text one token may stand for; None where no bound is known (unknown-word tokens)."""
        return max(map(len, self.pieces.pieces), default=1) if self.pieces else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises RequestError where it is no valid Unicode (a lone surrogate)."""
        check_unicode(text, "prompt")
        return self.backend.encode(text, add_special_tokens=add_special_tokens).ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD, ids without a token nothing.

        Raises RequestError for a negative id.
        """
        if any(token_id < 0 for token_id in ids):
            raise RequestError(f"token ids must not be negative, got {min(ids)}", param="tokens")
        if self.pieces is None:
            return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        text = b"".join(self._bytes_of(ids, skip_special_tokens)).decode("utf-8", "replace")
        return strip_leading_spaces(text, self.pieces.num_stripped_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        """The exact bytes of one token, special ones included; a partial character's where it is one."""
        if self.pieces is None:
            return (self.backend.id_to_token(token_id) or "").encode("utf-8", "replace")
        return self.pieces.pieces[token_id] if 0 <= token_id < len(self.pieces.pieces) else b""

    def token_text(self, token_id: int) -> str:
        """One token for display, its leading space kept; U+FFFD for bytes that are no whole character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def _bytes_of(self, ids: Sequence[int], skip_special_tokens: bool) -> list[bytes]:
        skipped = self.special_ids if skip_special_tokens else frozenset[int]()
        return [self.token_bytes(token_id) for token_id in ids if token_id not in skipped]


def strip_leading_spaces(text: str, num_spaces: int) -> str:
    """`text` without at most `num_spaces` spaces at its start."""
    count = 0
    while count < num_spaces and text[count : count + 1] == " ":
        count += 1
    return text[count:]


def check_unicode(text: str, param: str) -> None:
    """Raise RequestError where `text` holds a lone surrogate, which no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{param} is not valid Unicode: a lone surrogate (U+{ord(text[error.start]):04X}) at character "
            f"{error.start}; send the full surrogate pair or remove it",
            param=param,
        ) from None
