"""`InputProcessor`: what a user asks for, checked against this model and turned into token ids."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxserve.core.checks import check_in_vocab, check_token_ids
from jaxserve.core.errors import RequestError
from jaxserve.core.params import MAX_BAD_WORDS, SamplingParams
from jaxserve.engine.messages import EngineInfo
from jaxserve.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]

_SMALL_PROMPT_BYTES = 64 * 1024  # always tokenized, for the error that counts tokens says more


class InputProcessor:
    """Checks that need the tokenizer or the engine's limits; ranges are SamplingParams' own business.

    tokenizer may be None: then prompts are token ids and no text comes out.
    """

    def __init__(self, tokenizer: Tokenizer | None, info: EngineInfo) -> None:
        self.tokenizer = tokenizer
        self.info = info

    def process(
        self, prompt: Prompt, params: SamplingParams, *, add_special_tokens: bool = True
    ) -> tuple[str | None, list[int], SamplingParams]:
        """(prompt text or None, prompt token ids, params with max_tokens set and bad_words tokenized).

        prompt: text, token ids, or {"prompt": text} or {"prompt_token_ids": ids}. "" stands for the
        BOS token where the tokenizer adds one and is refused elsewhere. add_special_tokens False is
        for text that holds them already, such as a rendered chat template. `params` is not changed.
        Raises RequestError.
        """
        text, given_ids = _parts(prompt)
        ids = self.encode(text, add_special_tokens) if text is not None else self._checked_ids(given_ids)
        max_tokens = self._max_tokens(len(ids), params)
        return text, ids, self._params(params, max_tokens)

    @property
    def max_prompt_bytes(self) -> int | None:
        """Text above this size cannot fit however it is tokenized; None where no bound is known."""
        limit = self.tokenizer.max_bytes_per_token if self.tokenizer is not None else None
        return None if limit is None else max(limit * self.info.max_model_len, _SMALL_PROMPT_BYTES)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, at least one. Raises RequestError, by size alone where it cannot fit."""
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer: send the prompt as token ids", param="prompt")
        self._check_size(text)
        ids = self.tokenizer.encode(text, add_special_tokens)
        if not ids:
            raise RequestError("the prompt is empty: send at least one token", param="prompt")
        if max(ids) >= self.info.vocab_size:
            raise RequestError(
                f"the tokenizer made token id {max(ids)}, but the model has only {self.info.vocab_size} tokens: "
                "the tokenizer does not belong to this model",
                param="prompt",
            )
        return ids

    def _check_size(self, text: str) -> None:
        """Refuse what cannot fit before any time is spent on tokenizing it."""
        max_bytes = self.max_prompt_bytes
        if max_bytes is None or len(text) * 4 <= max_bytes:  # no character takes more than four bytes
            return
        num_bytes = len(text.encode("utf-8", "surrogatepass"))
        if num_bytes > max_bytes:
            raise RequestError(
                f"This model's maximum context length is {self.info.max_model_len} tokens, at most {max_bytes} bytes "
                f"of text. However, your prompt has {num_bytes} bytes. Please reduce the length of the prompt.",
                param="prompt",
                code="context_length_exceeded",
            )

    def _checked_ids(self, ids: Sequence[Any]) -> list[int]:
        if not ids:
            raise RequestError("the prompt is empty: send at least one token", param="prompt")
        if len(ids) > self.info.max_model_len:  # before looking at each of them
            raise self._too_long(len(ids), None)
        checked = check_token_ids("prompt", ids)
        check_in_vocab("prompt", checked, self.info.vocab_size)
        return checked

    def _max_tokens(self, num_prompt_tokens: int, params: SamplingParams) -> int:
        room = self.info.max_model_len - num_prompt_tokens
        if room < 1 or (params.max_tokens is not None and params.max_tokens > room):
            raise self._too_long(num_prompt_tokens, params.max_tokens)
        if params.min_tokens > room:
            raise RequestError(
                f"min_tokens is {params.min_tokens}, but a prompt of {num_prompt_tokens} tokens leaves only {room} "
                f"of the model's {self.info.max_model_len}",
                param="min_tokens",
            )
        return room if params.max_tokens is None else params.max_tokens

    def _too_long(self, num_prompt_tokens: int, max_tokens: int | None) -> RequestError:
        context = f"This model's maximum context length is {self.info.max_model_len} tokens. "
        if max_tokens is None or num_prompt_tokens >= self.info.max_model_len:
            message = (
                f"{context}However, your prompt has {num_prompt_tokens} tokens, which leaves no room for the "
                "completion. Please reduce the length of the prompt."
            )
            return RequestError(message, param="prompt", code="context_length_exceeded")
        message = (
            f"{context}However, you requested {num_prompt_tokens + max_tokens} tokens ({num_prompt_tokens} in the "
            f"prompt, {max_tokens} in the completion). Please reduce the length of the prompt or max_tokens."
        )
        return RequestError(message, param="max_tokens", code="context_length_exceeded")

    def _params(self, params: SamplingParams, max_tokens: int) -> SamplingParams:
        params.check_model(self.info.vocab_size, self.info.max_logprobs)
        if params.stop and self.tokenizer is None:
            raise RequestError("this engine has no tokenizer: use stop_token_ids instead of stop", param="stop")
        return replace(
            params,
            max_tokens=max_tokens,
            logprobs=self._num_logprobs(params.logprobs),
            prompt_logprobs=self._num_logprobs(params.prompt_logprobs),
            bad_words_token_ids=self._bad_words(params),
        )

    def _num_logprobs(self, asked: int | None) -> int | None:
        """Log probabilities a position: -1 stands for the whole vocabulary, and more than that is the whole too."""
        return None if asked is None else self.info.vocab_size if asked == -1 else min(asked, self.info.vocab_size)

    def _bad_words(self, params: SamplingParams) -> list[list[int]] | None:
        """Each word as it is written at the start of a text and after a space."""
        if not params.bad_words:
            return params.bad_words_token_ids
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer: bad_words cannot be read", param="bad_words")
        sequences: list[list[int]] = []
        for word in params.bad_words:
            for variant in (word.lstrip(), " " + word.lstrip()):
                ids = self.tokenizer.encode(variant, add_special_tokens=False)
                if ids and ids not in sequences:
                    sequences.append(ids)
            if len(sequences) > MAX_BAD_WORDS:
                raise RequestError(
                    f"bad_words make more than {MAX_BAD_WORDS} token sequences (each word counts with and without a "
                    "leading space); send fewer words",
                    param="bad_words",
                )
        check_in_vocab("bad_words", [token_id for ids in sequences for token_id in ids], self.info.vocab_size)
        return sequences


def _parts(prompt: Prompt) -> tuple[str | None, Sequence[Any]]:
    """(text, token ids): exactly one of them is given, the other None or empty."""
    if isinstance(prompt, str):
        return prompt, ()
    if isinstance(prompt, Mapping):
        known = [key for key in ("prompt", "prompt_token_ids") if prompt.get(key) is not None]
        if len(known) != 1:
            raise RequestError('a prompt object needs either "prompt" (text) or "prompt_token_ids"', param="prompt")
        value = prompt[known[0]]
        if isinstance(value, str) != (known[0] == "prompt") or isinstance(value, Mapping):
            raise RequestError('"prompt" must be text and "prompt_token_ids" a list of whole numbers', param="prompt")
        return _parts(value)
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray):  # pyright: ignore[reportUnnecessaryIsInstance]
        return None, prompt
    raise RequestError(
        f"a prompt is text, a list of token ids or an object with one of them, not {type(prompt).__name__}",
        param="prompt",
    )
