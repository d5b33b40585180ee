"""`SamplingParams`: how one request's tokens are chosen and when it ends."""

import enum
import logging
from dataclasses import dataclass, replace
from typing import Any, Self

from jaxserve.core.checks import (
    MAX_INT64,
    check_bool,
    check_float,
    check_in_vocab,
    check_int,
    check_list,
    check_strings,
    check_token_ids,
    fail,
    show,
)

logger = logging.getLogger(__name__)

MAX_N = 16384
MAX_BAD_WORDS = 128
MAX_LOGIT_BIAS = 16384
MAX_STOP_CHARS = 4096
MAX_BAD_WORD_CHARS = 4096
GREEDY_BELOW = 1e-5
MIN_TEMPERATURE = 0.01
MAX_FLOAT = 1e30  # of values that are clamped or have no natural limit


class RequestOutputKind(enum.IntEnum):
    """CUMULATIVE: each output holds everything so far; DELTA: only what is new; FINAL_ONLY: one output at the end."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


@dataclass(slots=True)
class SamplingParams:
    """Field names, defaults and ranges as vLLM's. Every field is checked, and raises RequestError(param=field).

    n: samples to return, 1..16384; must be 1 when greedy.
    temperature: [0, 2]. Below 1e-5 is greedy (then 0, and top_p, top_k, min_p are off); other values
        below 0.01 are raised to 0.01 with a warning.
    top_p (0, 1]; top_k 0 (or -1) for all, else >= 1; min_p [0, 1], relative to the best probability.
    presence_penalty, frequency_penalty: [-2, 2], on generated tokens; repetition_penalty: > 0, on
        prompt and generated tokens.
    seed: int64; -1 is None: the engine draws one.
    stop: strings of 1..4096 characters that end the text (a single one may be given bare); needs detokenize.
    stop_token_ids: ids that end it; ignore_eos: the model's own end tokens do not.
    bad_words: at most 128 strings that shall not be generated.
    bad_words_token_ids: the same, tokenised; filled by the front end.
    max_tokens: at least 1, None for as many as the context takes. min_tokens: 0..max_tokens;
        no end token before. Both count generated tokens.
    logprobs, prompt_logprobs: how many top log probabilities a token; -1 for the whole vocabulary.
    logit_bias: token id to a value, clamped to [-100, 100]; at most 16384 entries.
    allowed_token_ids: nothing else is generated; None for all.
    stream_interval: tokens between two streamed outputs, at least 1.
    skip_reading_prefix_cache: recompute the whole prompt; None means True where prompt_logprobs are
        asked for (cached positions have no logits), else False.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | str | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    bad_words: list[str] | None = None
    bad_words_token_ids: list[list[int]] | None = None  # filled by the front end from bad_words
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    output_kind: RequestOutputKind = RequestOutputKind.CUMULATIVE
    stream_interval: int | None = None
    skip_reading_prefix_cache: bool | None = None

    def __post_init__(self) -> None:
        """Check and normalise every field; checking twice changes nothing (messages are decoded into this class)."""
        self._check_switches()
        self._check_randomness()
        self._check_penalties()
        self._check_ends()
        self._check_logprobs()
        self._check_token_rules()

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0.0

    def for_child(self, index: int) -> Self:
        """The parameters of sample `index` of n: one sample, and a seed of its own where a seed is given."""
        seed = self.seed
        if seed is not None:
            shifted = seed + index
            shifted += seed < -1 <= shifted  # -1 would mean "no seed"
            seed = shifted - 2**64 if shifted > MAX_INT64 else shifted
        return replace(self, n=1, seed=seed)

    def check_model(self, vocab_size: int, max_logprobs: int) -> None:
        """What only a model can tell: ids inside its vocabulary, and no more log probabilities than it allows.

        max_logprobs: the engine's limit, -1 for the whole vocabulary. Raises RequestError.
        """
        limit = vocab_size if max_logprobs == -1 else max_logprobs
        for field, num in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            asked = vocab_size if num == -1 else num or 0
            if asked > limit:
                raise fail(
                    field,
                    f"asks for {asked} log probabilities a token; at most {limit} are allowed",
                    "Ask for fewer, or start the engine with a higher max_logprobs.",
                )
        check_in_vocab("logit_bias", self.logit_bias or (), vocab_size)
        check_in_vocab("allowed_token_ids", self.allowed_token_ids or (), vocab_size)
        check_in_vocab("stop_token_ids", self.stop_token_ids or (), vocab_size)

    def _check_switches(self) -> None:
        for field in (
            "ignore_eos",
            "include_stop_str_in_output",
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
        ):
            check_bool(field, getattr(self, field))
        if self.skip_reading_prefix_cache is None:
            self.skip_reading_prefix_cache = self.prompt_logprobs is not None
        check_bool("skip_reading_prefix_cache", self.skip_reading_prefix_cache)
        kind = check_int("output_kind", self.output_kind, 0, 2, remedy="Use a RequestOutputKind.")
        self.output_kind = RequestOutputKind(kind)
        if self.stream_interval is not None:
            self.stream_interval = check_int("stream_interval", self.stream_interval, 1)

    def _check_randomness(self) -> None:
        self.n = check_int("n", self.n, 1, MAX_N)
        self.temperature = check_float("temperature", self.temperature, 0.0, 2.0, remedy="Use 0 for greedy.")
        self.top_p = check_float("top_p", self.top_p, 0.0, 1.0, above_low=True, remedy="Use 1 to keep all tokens.")
        self.top_k = check_int("top_k", self.top_k, -1, remedy="Use 0 or -1 to keep all tokens.")
        self.top_k = max(self.top_k, 0)
        self.min_p = check_float("min_p", self.min_p, 0.0, 1.0, remedy="Use 0 to keep all tokens.")
        if self.seed is not None:
            seed = check_int("seed", self.seed, -MAX_INT64 - 1, MAX_INT64)
            self.seed = None if seed == -1 else seed
        if self.temperature < GREEDY_BELOW:
            self.temperature, self.top_p, self.top_k, self.min_p = 0.0, 1.0, 0, 0.0
            if self.n > 1:
                raise fail(
                    "n",
                    f"must be 1 when sampling is greedy (temperature 0), got {self.n}",
                    "All samples would be equal: set temperature above 0, or n to 1.",
                )
        elif self.temperature < MIN_TEMPERATURE:
            logger.warning(
                "temperature %g is below %g and would lose precision; %g is used. Use 0 for greedy.",
                self.temperature,
                MIN_TEMPERATURE,
                MIN_TEMPERATURE,
            )
            self.temperature = MIN_TEMPERATURE

    def _check_penalties(self) -> None:
        self.presence_penalty = check_float("presence_penalty", self.presence_penalty, -2.0, 2.0)
        self.frequency_penalty = check_float("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        repetition = check_float(
            "repetition_penalty", self.repetition_penalty, 0.0, MAX_FLOAT, above_low=True, remedy="Use 1 for none."
        )
        self.repetition_penalty = max(repetition, 1 / MAX_FLOAT)  # float32 on the device, which divides by it

    def _check_ends(self) -> None:
        if self.max_tokens is not None:
            self.max_tokens = check_int("max_tokens", self.max_tokens, 1)
        self.min_tokens = check_int("min_tokens", self.min_tokens, 0)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise fail(
                "min_tokens",
                f"must be at most max_tokens={self.max_tokens}, got {self.min_tokens}",
                "Raise max_tokens or lower min_tokens.",
            )
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        self.stop = check_strings("stop", stop, None, MAX_STOP_CHARS)
        if self.stop and not self.detokenize:
            raise fail("stop", "needs detokenize=True", "Use stop_token_ids to stop without text.")
        self.stop_token_ids = check_token_ids("stop_token_ids", self.stop_token_ids or [])

    def _check_logprobs(self) -> None:
        remedy = "Use -1 for the whole vocabulary, None for none."
        if self.logprobs is not None:
            self.logprobs = check_int("logprobs", self.logprobs, -1, remedy=remedy)
        if self.prompt_logprobs is not None:
            self.prompt_logprobs = check_int("prompt_logprobs", self.prompt_logprobs, -1, remedy=remedy)

    def _check_token_rules(self) -> None:
        if self.logit_bias is not None:
            self.logit_bias = _check_logit_bias(self.logit_bias)
        if self.allowed_token_ids is not None:
            self.allowed_token_ids = check_token_ids("allowed_token_ids", self.allowed_token_ids)
            if not self.allowed_token_ids:
                raise fail("allowed_token_ids", "must not be empty", "Use None to allow all tokens.")
        self.bad_words = check_strings("bad_words", self.bad_words or [], MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
        if self.bad_words_token_ids is not None:
            self.bad_words_token_ids = _check_words(self.bad_words_token_ids)


def _check_logit_bias(value: Any) -> dict[int, float]:
    """Token ids (JSON knows only string keys, so "42" is 42) to finite values, clamped to [-100, 100]."""
    if not isinstance(value, dict):
        raise fail("logit_bias", f"must map token ids to numbers, got {show(value)}")
    if len(value) > MAX_LOGIT_BIAS:
        raise fail(
            "logit_bias",
            f"holds {len(value)} entries; at most {MAX_LOGIT_BIAS} are allowed",
            "Use allowed_token_ids to restrict the vocabulary.",
        )
    biases: dict[int, float] = {}
    for key, bias in value.items():
        is_digits = isinstance(key, str) and key.isascii() and key.isdecimal() and len(key) <= 10
        token_id = check_int("logit_bias key", int(key) if is_digits else key, 0, remedy="Keys are token ids.")
        bias = check_float(f"logit_bias[{token_id}]", bias, -MAX_FLOAT, MAX_FLOAT)
        biases[token_id] = min(100.0, max(-100.0, bias))
    return biases


def _check_words(value: Any) -> list[list[int]]:
    words = [check_token_ids("bad_words_token_ids", word) for word in check_list("bad_words_token_ids", value, "words")]
    if not all(words):
        raise fail("bad_words_token_ids", "must not hold an empty word")
    return words
