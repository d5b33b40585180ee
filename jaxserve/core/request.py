"""One token stream to complete, and its ledger.

`n > 1` is fanned out before this point: a Request is always a single stream.
"""

from dataclasses import dataclass, field

from jaxserve.core.params import SamplingParams


@dataclass(slots=True, eq=False)
class Request:
    """Owned and mutated by the Scheduler alone.

    The ledger, in tokens (prompt and output counted together):
        [0, num_cached_tokens)    read from the prefix cache at the first admission
        [0, num_computed_tokens)  keys and values are in the pool
        [0, num_tokens)           known: prompt plus what was sampled
    Steps in flight compute [num_computed_tokens, num_computed_tokens + num_scheduled_tokens) and sample
    [num_tokens, num_tokens + num_pending_tokens), which the host does not know yet.

    row: index of the request's sampling-state row on the device while running, else None.
    page_ids: pages held, in order of position; page_ids[i] holds positions [i*Z, (i+1)*Z).
    seed: 64-bit, always set (the engine draws one where the user gave none).
    arrival_time_s: monotonic seconds; priority: lower runs first; arrival_order: place among all requests added.
    num_published_pages: leading pages of page_ids that the prefix cache knows.
    num_prompt_logprobs_sent: prompt positions 1.. whose log probabilities were delivered (a recompute repeats none).
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int = 0
    arrival_time_s: float = 0.0
    priority: int = 0
    cache_salt: str | None = None
    output_token_ids: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_scheduled_tokens: int = 0
    num_pending_tokens: int = 0
    num_cached_tokens: int = 0
    page_ids: list[int] = field(default_factory=list)
    page_hashes: list[bytes] = field(default_factory=list)
    row: int | None = None
    num_preemptions: int = 0
    arrival_order: int = 0
    num_published_pages: int = 0
    num_prompt_logprobs_sent: int = 0
    admitted_time_s: float | None = None
    first_token_time_s: float | None = None

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.output_token_ids)

    @property
    def num_reached_tokens(self) -> int:
        """Where the next step goes on: tokens computed, those of steps in flight included."""
        return self.num_computed_tokens + self.num_scheduled_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids of positions [start, stop) across prompt and output."""
        n = len(self.prompt_token_ids)
        if stop <= n:
            return self.prompt_token_ids[start:stop]
        if start >= n:
            return self.output_token_ids[start - n : stop - n]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - n]
