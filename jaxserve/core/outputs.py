"""What a request gives back: per-token log probabilities, completions and finish reasons.

`EngineOutput` is the engine's own answer of one step for one request (token ids only);
`RequestOutput` is what users see (text assembled, `n` samples gathered).
"""

import enum
from dataclasses import dataclass, field


class FinishReason(enum.StrEnum):
    """Why a request ended. The values are those of the OpenAI API where it has one."""

    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"


@dataclass(slots=True)
class TokenLogprobs:
    """Log probabilities (natural log, raw model distribution) around one token.

    token_id, logprob, rank: the token that is in the sequence; rank 1 is the most likely.
    top_ids, top_logprobs: the most likely tokens, best first; as many as were asked for.
    """

    token_id: int
    logprob: float
    rank: int
    top_ids: list[int] = field(default_factory=list)
    top_logprobs: list[float] = field(default_factory=list)


@dataclass(slots=True)
class EngineOutput:
    """One step's news of one request, from the engine to its client.

    new_token_ids: tokens sampled in this step (possibly none, for a prompt chunk).
    logprobs: one entry a new token, where the request asked for them.
    prompt_logprobs: entries of the prompt positions computed in this step, in order; the engine
        sends positions 1.. (the first prompt token has no distribution); None if not asked for.
    finish_reason, stop_reason: set once, on the request's one terminal output; stop_reason is
        the stop token's id where one ended it (None for EOS).
    num_cached_tokens: prompt tokens that were read from the prefix cache.
    error: the message if finish_reason is ERROR; error_kind: the class of jaxserve.core.errors it stands for
        ("QueueFull"), None for EngineError.
    queue_time_s, prefill_time_s: set on the output that carries the first token, seconds.
    """

    request_id: str
    new_token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    error: str | None = None
    error_kind: str | None = None
    queue_time_s: float | None = None
    prefill_time_s: float | None = None


@dataclass(slots=True)
class Logprob:
    """One candidate token of one position, as vLLM names it."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One of the `n` samples of a request.

    logprobs: per token a dict of token id to Logprob (the sampled token is always a key).
    stop_reason: the stop string or stop token id that ended it, None for EOS or length.
    """

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass(slots=True)
class RequestMetrics:
    """Times of one request, seconds on the monotonic clock (arrival) or durations."""

    arrival_time_s: float = 0.0
    queue_time_s: float | None = None
    prefill_time_s: float | None = None
    time_to_first_token_s: float | None = None
    finished_time_s: float | None = None
    num_preemptions: int = 0


@dataclass(slots=True)
class RequestOutput:
    """Everything known so far about one request (field names as in vLLM).

    prompt_logprobs: one entry a prompt token, the first is None; None if not asked for.
    finished: True on exactly one, the last, output of a request.
    error, error_kind: as in EngineOutput, on the last output of a request that failed.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    metrics: RequestMetrics | None = None
    num_cached_tokens: int = 0
    error: str | None = None
    error_kind: str | None = None
