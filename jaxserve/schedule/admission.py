"""What is refused before it waits: settings that cannot work, requests that cannot run, a queue that is full."""

import math

from jaxserve.core.config import CacheConfig, SchedulerConfig
from jaxserve.core.errors import ConfigError, QueueFull, RequestError
from jaxserve.core.request import Request
from jaxserve.schedule.queue import WaitingQueue

MAX_RETRY_AFTER_S = 60


def check_config(config: SchedulerConfig, cache: CacheConfig) -> None:
    """Raises ConfigError unless every admitted request can run to its end, alone if need be."""
    for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len"):
        if getattr(config, name) < 1:
            raise ConfigError(f"{name}={getattr(config, name)} must be at least 1")
    if cache.page_size < 1:
        raise ConfigError(f"page_size={cache.page_size} must be at least 1")
    if config.policy not in ("fcfs", "priority"):
        raise ConfigError(f"scheduling_policy={config.policy!r} must be 'fcfs' or 'priority'")
    if config.max_num_batched_tokens < config.max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens={config.max_num_batched_tokens} is less than max_num_seqs={config.max_num_seqs}: "
            "every running request needs one token a step; raise the first or lower the second"
        )
    num_needed = -(-config.max_model_len // cache.page_size)
    if cache.num_pages < num_needed:
        raise ConfigError(
            f"one request of max_model_len={config.max_model_len} tokens needs {num_needed} pages of "
            f"{cache.page_size} tokens, but the pool has {cache.num_pages}; lower max_model_len or give the "
            "pool more memory (kv_cache_memory_bytes, gpu_memory_utilization)"
        )


def check_request(request: Request, config: SchedulerConfig) -> None:
    """Raises RequestError if the prompt is empty or leaves no room for one output token.

    `check_config` made sure that max_model_len tokens fit the pool, so what passes here fits it too.
    """
    num_prompt = request.num_prompt_tokens
    if num_prompt == 0:
        raise RequestError("the prompt is empty; at least one token is needed", param="prompt")
    if num_prompt >= config.max_model_len:
        raise RequestError(
            f"the prompt has {num_prompt} tokens, but max_model_len={config.max_model_len} allows at most "
            f"{config.max_model_len - 1} and one output token; shorten the prompt",
            param="prompt",
            code="context_length_exceeded",
        )


def check_queue(
    request: Request, queue: WaitingQueue, num_free_rows: int, config: SchedulerConfig, now_s: float
) -> None:
    """Raises QueueFull at a queue limit.

    Requests that free rows take at the next step do not count as queued. The token limit never
    refuses a request that would wait alone, or a long prompt could not be served at all.
    """
    limit, num_queued = config.max_num_queued_reqs, len(queue) - num_free_rows
    if limit is not None and num_queued >= limit:
        raise QueueFull(
            f"{num_queued} requests are waiting and max_num_queued_reqs={limit}; try again later",
            retry_after_s=_retry_after_s(queue, now_s),
        )
    limit = config.max_num_queued_tokens
    if limit is not None and len(queue) and queue.num_tokens + request.num_tokens > limit:
        raise QueueFull(
            f"{queue.num_tokens} tokens are waiting, this request brings {request.num_tokens} more and "
            f"max_num_queued_tokens={limit}; try again later",
            retry_after_s=_retry_after_s(queue, now_s),
        )


def _retry_after_s(queue: WaitingQueue, now_s: float) -> int:
    """As long as the head of the queue has waited, a newcomer would about wait too."""
    waited_s = now_s - queue.peek().arrival_time_s if len(queue) else 0.0
    return min(max(math.ceil(waited_s), 1), MAX_RETRY_AFTER_S)
