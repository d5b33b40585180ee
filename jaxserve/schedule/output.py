"""`SchedulerOutput`: the scheduler's one decision of one step, complete enough to be replayed elsewhere."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxserve.core.params import SamplingParams

PENDING_TOKEN = -1
"""In a row's token_ids: what the same row sampled in the step before. Only the device knows it yet."""


class ScheduledRow(NamedTuple):
    """The tokens of one request that this step computes. (A tuple: made for every running request in every step.)

    row: the request's sampling-state row on the device, 0..max_num_seqs-1.
    token_ids: ids of positions [start, start + len(token_ids)); at least one. All known, or PENDING_TOKEN alone.
    page_ids: the request's pages, covering at least start + len(token_ids) tokens.
    samples: True where no later token is known or pending, so a token is sampled.
    num_prompt_logprobs: top log probabilities to return for the prompt positions of this chunk;
        None for none.
    num_prompt_tokens: length of the request's prompt, in tokens.
    """

    request_id: str
    row: int
    start: int
    token_ids: list[int]
    page_ids: list[int]
    samples: bool
    num_prompt_tokens: int
    num_prompt_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class RowStart:
    """A request (re)enters a sampling-state row before this step runs.

    prompt_token_ids, output_token_ids: all known so far (penalties count them).
    seed: 64-bit unsigned.
    """

    row: int
    request_id: str
    params: SamplingParams
    seed: int
    prompt_token_ids: list[int]
    output_token_ids: list[int]


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """rows: those of exactly one token first (in any order), then the longer ones.

    starts: rows whose sampling state must be loaded before this step.
    num_tokens: sum of the rows' tokens, at most max_num_batched_tokens.
    preempted: request ids that lost their pages in this decision (for logs and metrics).
    """

    step_id: int
    rows: list[ScheduledRow]
    starts: list[RowStart] = field(default_factory=list)
    num_tokens: int = 0
    preempted: list[str] = field(default_factory=list)
