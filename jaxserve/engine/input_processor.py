"""`InputProcessor`: what a user asks for, checked against this model and turned into token ids."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jaxserve.core.errors import RequestError
from jaxserve.core.params import SamplingParams
from jaxserve.engine.messages import EngineInfo
from jaxserve.text.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Mapping[str, Any]

MAX_BAD_WORDS = 128  # token sequences, after tokenizing
_SMALL_PROMPT_BYTES = 64 * 1024  # below this, tokenizing is cheaper than reasoning about it


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

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a prompt, at least one. Raises RequestError, by size alone where it cannot fit."""
        if self.tokenizer is None:
            raise RequestError("this engine has no tokenizer: send the prompt as token ids", param="prompt")
        self._check_size(text, self.tokenizer)
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

    def _check_size(self, text: str, tokenizer: Tokenizer) -> None:
        """Refuse text too long to fit however it is tokenized, before any time is spent on tokenizing it."""
        limit = tokenizer.max_bytes_per_token
        if limit is None or len(text) <= _SMALL_PROMPT_BYTES // 4:
            return
        max_bytes = max(limit * self.info.max_model_len, _SMALL_PROMPT_BYTES)
        num_bytes = len(text.encode("utf-8", "surrogatepass"))
        if num_bytes > max_bytes:
            raise RequestError(
                f"This model's maximum context length is {self.info.max_model_len} tokens, at most "
                f"{max_bytes} bytes of text. However, your prompt has {num_bytes} bytes. "
                "Please reduce the length of the prompt.",
                param="prompt",
                code="context_length_exceeded",
            )

    def _checked_ids(self, ids: Sequence[Any]) -> list[int]:
        if not ids:
            raise RequestError("the prompt is empty: send at least one token", param="prompt")
        if len(ids) > self.info.max_model_len:  # before looking at each of them
            raise self._too_long(len(ids), None)
        checked = list(ids)
        if any(type(token_id) is not int for token_id in checked):
            raise RequestError("a prompt of token ids must hold whole numbers only", param="prompt")
        self._check_vocabulary("prompt", checked)
        return checked

    def _check_vocabulary(self, param: str, ids: Collection[int]) -> None:
        if not ids:
            return
        worst = min(ids) if min(ids) < 0 else max(ids)
        if not 0 <= worst < self.info.vocab_size:
            raise RequestError(
                f"{param}: token id {worst} is out of vocabulary, ids run from 0 to {self.info.vocab_size - 1}",
                param=param,
            )

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
        self._check_vocabulary("logit_bias", params.logit_bias or ())
        self._check_vocabulary("stop_token_ids", params.stop_token_ids or ())
        self._check_vocabulary("allowed_token_ids", params.allowed_token_ids or ())
        if params.stop and self.tokenizer is None:
            raise RequestError("this engine has no tokenizer: use stop_token_ids instead of stop", param="stop")
        return replace(
            params,
            max_tokens=max_tokens,
            logprobs=self._num_logprobs("logprobs", params.logprobs),
            prompt_logprobs=self._num_logprobs("prompt_logprobs", params.prompt_logprobs),
            bad_words_token_ids=self._bad_words(params),
        )

    def _num_logprobs(self, param: str, asked: int | None) -> int | None:
        """How many log probabilities a position gets: -1 is the whole vocabulary, more than that is the whole too."""
        if asked is None:
            return None
        vocab_size = self.info.vocab_size
        wanted = vocab_size if asked == -1 else asked
        limit = vocab_size if self.info.max_logprobs == -1 else self.info.max_logprobs
        if wanted > limit:
            meaning = f" (the whole vocabulary, {vocab_size} tokens)" if asked == -1 else ""
            raise RequestError(
                f"{param} is {asked}{meaning}, more than the {limit} this server returns; "
                "ask for fewer or start it with a higher --max-logprobs",
                param=param,
            )
        return min(wanted, vocab_size)

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
        self._check_vocabulary("bad_words", [token_id for ids in sequences for token_id in ids])
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
