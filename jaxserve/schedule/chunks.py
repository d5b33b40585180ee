"""How many of a request's tokens one step computes."""

from jaxserve.core.config import SchedulerConfig


def chunk_len(config: SchedulerConfig, num_left: int, budget: int) -> int:
    """Tokens of a running request that the step takes: what is left, up to the budget and the chunk cap."""
    capped = config.enable_chunked_prefill and config.long_prefill_token_threshold > 0
    return min(num_left, budget, config.long_prefill_token_threshold if capped else num_left)


def first_chunk_len(config: SchedulerConfig, num_left: int, budget: int) -> int:
    """Tokens taken at admission, 0 to wait.

    Without chunked prefill a prompt waits until the budget holds it whole. One that is longer than
    any step's budget would wait for ever: that one is split all the same.
    """
    must_be_whole = not config.enable_chunked_prefill and num_left <= config.max_num_batched_tokens
    return 0 if must_be_whole and num_left > budget else chunk_len(config, num_left, budget)
