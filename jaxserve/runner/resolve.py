"""From what the user says to numbers: `EngineArgs` -> `EngineConfig`, with every "auto" decided once and logged."""

import math
from pathlib import Path

from jaxserve.core.config import CacheConfig, EngineArgs, EngineConfig, ModelConfig, SchedulerConfig
from jaxserve.core.errors import ConfigError, DoesNotFit
from jaxserve.core.model_config import longest_context
from jaxserve.models.shard import shard_of
from jaxserve.runner.device import Device
from jaxserve.runner.memory import format_bytes, kv_bytes_per_token
from jaxserve.runner.remedies import advice, remedies
from jaxserve.runner.sizes import Sizes, sizes_of

_CPU_POOL_BYTES = 1 << 30  # a CPU's memory is not ours to fill: a stated number instead of a share
_USEFUL_TOKENS = 2048  # where no length is asked for, what a remedy must make room for


def resolve(args: EngineArgs, model: ModelConfig, path: Path, device: Device) -> EngineConfig:
    """Decide every "auto". Raises DoesNotFit, naming flags and values that would, or ConfigError for bad input."""
    device = device.one_of(args.tensor_parallel_size)
    try:
        return _decide(args, model, path, device)
    except DoesNotFit as error:
        raise _with_remedies(error, args, model, device) from None


def describe(config: EngineConfig) -> str:
    """The pool in one line: tokens, bytes and how many requests of full length it holds."""
    cache, model, pool = config.cache, config.model, config.pool
    tokens = cache.num_pages * cache.page_size
    padded = f" (heads of {model.head_dim} padded to {pool.head_dim})" if pool.head_dim != model.head_dim else ""
    size = tokens * kv_bytes_per_token(shard_of(model, config.tensor_parallel_size), pool)
    each = f" on each of {config.tensor_parallel_size} devices" if config.tensor_parallel_size > 1 else ""
    return (
        f"KV pool: {tokens:,} tokens in {cache.num_pages:,} pages of {cache.page_size}, "
        f"{format_bytes(size)} of {pool.dtype}{padded}{each}, room for "
        f"{tokens / config.scheduler.max_model_len:.1f} requests of max_model_len {config.scheduler.max_model_len:,}"
    )


def _decide(args: EngineArgs, model: ModelConfig, path: Path, device: Device) -> EngineConfig:
    sizes = sizes_of(args, model, device)
    pool_bytes = _pool_bytes(args, sizes, device)
    max_model_len, num_pages = _lengths(args, model, sizes, pool_bytes)
    if args.kv_cache_memory_bytes is None and device.is_cpu:
        num_pages = min(num_pages, sizes.num_seqs * math.ceil(max_model_len / sizes.page_size))
    return EngineConfig(
        model=model,
        cache=CacheConfig(sizes.page_size, num_pages, args.enable_prefix_caching),
        pool=sizes.pool,
        scheduler=SchedulerConfig(
            max_num_seqs=sizes.num_seqs,
            max_num_batched_tokens=sizes.num_batched_tokens,
            max_model_len=max_model_len,
            enable_chunked_prefill=args.enable_chunked_prefill,
            long_prefill_token_threshold=args.long_prefill_token_threshold,
            policy=args.scheduling_policy,
            max_num_queued_reqs=args.max_num_queued_reqs,
            max_num_queued_tokens=args.max_num_queued_tokens,
        ),
        model_path=str(path),
        load_format=args.load_format,
        seed=args.seed,
        max_logprobs=args.max_logprobs,
        check_inputs=args.check_inputs,
        compilation_cache_dir=args.compilation_cache_dir,
        tensor_parallel_size=args.tensor_parallel_size,
    )


def _with_remedies(error: DoesNotFit, args: EngineArgs, model: ModelConfig, device: Device) -> DoesNotFit:
    """The error with the flags and values that would do, each tried."""
    sizes = sizes_of(args, model, device)
    num_tokens = _asked_length(args) or min(_USEFUL_TOKENS, longest_context(model))

    def fits(args: EngineArgs, model: ModelConfig, device: Device) -> bool:
        try:
            length = _decide(args, model, Path(), device).scheduler.max_model_len
        except ConfigError:
            return False
        return length >= (_asked_length(args) or num_tokens)

    found = remedies(args, model, device, sizes, num_tokens, fits)
    return DoesNotFit(f"{error} {advice(found, args, device, sizes, num_tokens)}", found)


def _pool_bytes(args: EngineArgs, sizes: Sizes, device: Device) -> int:
    """Bytes the pool may take of each device: as asked, of a CPU a stated number, of a GPU all that is left."""
    asked, most = args.kv_cache_memory_bytes, _CPU_POOL_BYTES // args.tensor_parallel_size
    if device.memory_bytes is None:
        return most if asked is None else asked
    counted = sizes.weight_bytes + sizes.step_bytes
    needed = counted + (sizes.reserve_bytes if asked is None else asked)
    if needed > device.memory_bytes:
        pool = "" if asked is None else f", with a KV pool of {format_bytes(asked)}"
        share = "" if device.is_cpu else f" (gpu_memory_utilization={args.gpu_memory_utilization})"
        raise DoesNotFit(
            f"The model does not fit: {format_bytes(sizes.weight_bytes)} of weights and "
            f"{format_bytes(sizes.step_bytes)} of working memory{pool} need {format_bytes(needed)}, "
            f"the engine may use {format_bytes(device.memory_bytes)}{share}."
        )
    if asked is not None:
        return asked
    return min(most, device.memory_bytes - needed) if device.is_cpu else device.memory_bytes - needed


def _asked_length(args: EngineArgs) -> int | None:
    """max_model_len as a number; None for "auto"."""
    wanted = args.max_model_len
    if wanted in ("auto", None):
        return None
    if isinstance(wanted, str) and not wanted.isdecimal():
        raise ConfigError(f"max_model_len={wanted!r} must be a number of tokens or 'auto'.")
    return int(wanted)


def _lengths(args: EngineArgs, model: ModelConfig, sizes: Sizes, pool_bytes: int) -> tuple[int, int]:
    """(max_model_len, num_pages): the pool always holds one request of full length."""
    num_pages = pool_bytes // sizes.page_bytes
    num_tokens = num_pages * sizes.page_size
    asked, longest = _asked_length(args), longest_context(model)
    if asked is not None and asked < 1:
        raise ConfigError(f"max_model_len={asked} must be at least 1.")
    if asked is not None and asked > longest:
        raise ConfigError(
            f"max_model_len={asked} is above the {longest} positions that the model's config.json allows; "
            f"lower it, or raise max_position_embeddings with hf_overrides."
        )
    if num_pages < 1 or num_tokens < (asked or 1):
        what = "A page" if asked is None else f"max_model_len={asked}"
        raise DoesNotFit(f"{what} does not fit the KV pool of {format_bytes(pool_bytes)}, {num_tokens} tokens.")
    return min(longest, num_tokens) if asked is None else asked, num_pages
