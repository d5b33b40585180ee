"""From what the user says to numbers: `EngineArgs` -> `EngineConfig`, with every "auto" decided once and logged."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

import jax

from jaxserve.core.config import CacheConfig, EngineArgs, EngineConfig, ModelConfig, PoolConfig, SchedulerConfig
from jaxserve.core.errors import ConfigError
from jaxserve.core.model_config import longest_context
from jaxserve.runner.memory import dtype_bytes, format_bytes, kv_bytes_per_token, num_parameters, step_bytes
from pallas_kernels import pool_head_dim

_CPU_POOL_BYTES = 1 << 30  # a CPU's memory is not ours to fill: a stated number instead of a share
_POOL_DTYPES = {  # names users know -> JAX's
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class Device:
    """The device the engine runs on.

    memory_bytes: what XLA may allocate there, None on a CPU. compute_capability: of a GPU, such as "9.0".
    """

    platform: str
    kind: str
    memory_bytes: int | None
    compute_capability: str | None = None

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"


def claim_device(gpu_memory_utilization: float) -> Device:
    """Start JAX's backend with the wished share of the device's memory and look at the first device."""
    if not 0 < gpu_memory_utilization <= 1:
        raise ConfigError(
            f"gpu_memory_utilization={gpu_memory_utilization} is outside (0, 1]; 0.92 leaves others some room."
        )
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{gpu_memory_utilization:.3f}")
    device = jax.devices()[0]
    stats = None if device.platform == "cpu" else device.memory_stats()
    capability = getattr(device, "compute_capability", None)
    return Device(device.platform, device.device_kind, stats.get("bytes_limit") if stats else None, capability)


def resolve(args: EngineArgs, model: ModelConfig, path: Path, device: Device) -> EngineConfig:
    """Decide every "auto". Raises ConfigError, naming a value that would fit, where something does not."""
    if args.tensor_parallel_size != 1:
        raise ConfigError(
            f"tensor_parallel_size={args.tensor_parallel_size}: this version runs on one device; leave it at 1."
        )
    num_seqs, budget = _step_limits(args, device)
    page_size = (32 if device.is_cpu else 64) if args.page_size is None else args.page_size
    for name, value in (("max_num_seqs", num_seqs), ("max_num_batched_tokens", budget), ("page_size", page_size)):
        if value < 1:
            raise ConfigError(f"{name}={value} must be at least 1.")
    if budget < num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens={budget} is below max_num_seqs={num_seqs}; "
            "raise it or lower the other: each running request needs a token a step."
        )
    pool = _pool(args, model, device, page_size)
    page_bytes = page_size * kv_bytes_per_token(model, pool)
    pool_bytes = _pool_bytes(args, model, pool, device, num_tokens=budget, num_rows=num_seqs)
    max_model_len, num_pages = _lengths(args, model, page_size, page_bytes, pool_bytes)
    if args.kv_cache_memory_bytes is None and device.is_cpu:
        num_pages = min(num_pages, num_seqs * math.ceil(max_model_len / page_size))
    return EngineConfig(
        model=model,
        cache=CacheConfig(page_size, num_pages, args.enable_prefix_caching),
        pool=pool,
        scheduler=SchedulerConfig(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=budget,
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
    )


def _step_limits(args: EngineArgs, device: Device) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens); one that is unset follows the one that is."""
    num_seqs, budget = args.max_num_seqs, args.max_num_batched_tokens
    if num_seqs is None:
        default = 64 if device.is_cpu else 256
        num_seqs = default if budget is None else min(default, budget)
    if budget is None:
        budget = max(512 if device.is_cpu else 8192, num_seqs)
    return num_seqs, budget


def describe(config: EngineConfig) -> str:
    """The pool in one line: tokens, bytes and how many requests of full length it holds."""
    cache, model, pool = config.cache, config.model, config.pool
    tokens = cache.num_pages * cache.page_size
    padded = f" (heads of {model.head_dim} padded to {pool.head_dim})" if pool.head_dim != model.head_dim else ""
    return (
        f"KV pool: {tokens:,} tokens in {cache.num_pages:,} pages of {cache.page_size}, "
        f"{format_bytes(tokens * kv_bytes_per_token(model, pool))} of {pool.dtype}{padded}, room for "
        f"{tokens / config.scheduler.max_model_len:.1f} requests of max_model_len {config.scheduler.max_model_len:,}"
    )


def _pool(args: EngineArgs, model: ModelConfig, device: Device, page_size: int) -> PoolConfig:
    """What a number of the pool is, and how many a head has there."""
    known = {"auto": model.dtype, **_POOL_DTYPES}
    if args.kv_cache_dtype not in known:
        raise ConfigError(f"kv_cache_dtype={args.kv_cache_dtype!r} is unknown; choose one of {', '.join(known)}.")
    dtype = known[args.kv_cache_dtype]
    q = jax.ShapeDtypeStruct((1, model.num_heads, model.head_dim), model.dtype)
    pool = jax.ShapeDtypeStruct((1, 2, model.num_kv_heads, page_size, model.head_dim), dtype)
    return PoolConfig(dtype, pool_head_dim(q, pool, device.compute_capability))


def _pool_bytes(
    args: EngineArgs, model: ModelConfig, pool: PoolConfig, device: Device, *, num_tokens: int, num_rows: int
) -> int:
    if args.kv_cache_memory_bytes is not None:
        return args.kv_cache_memory_bytes
    if device.memory_bytes is None:
        return _CPU_POOL_BYTES
    weights = num_parameters(model) * dtype_bytes(model.dtype)
    step = step_bytes(model, pool, num_tokens=num_tokens, num_rows=num_rows)
    left = device.memory_bytes - weights - step - (512 << 20)
    if left <= 0:
        needed = weights + step + (512 << 20)
        raise ConfigError(
            f"The model does not fit: {format_bytes(weights)} of weights and {format_bytes(step)} of working memory "
            f"need {format_bytes(needed)}, the engine may use {format_bytes(device.memory_bytes)} "
            f"(gpu_memory_utilization={args.gpu_memory_utilization}). "
            "Lower max_num_batched_tokens or take a larger device."
        )
    return left


def _lengths(args: EngineArgs, model: ModelConfig, page_size: int, page_bytes: int, pool_bytes: int) -> tuple[int, int]:
    """(max_model_len, num_pages): the pool always holds one request of full length."""
    num_pages = pool_bytes // page_bytes
    wanted = args.max_model_len
    if isinstance(wanted, str) and wanted != "auto" and not wanted.isdecimal():
        raise ConfigError(f"max_model_len={wanted!r} must be a number of tokens or 'auto'.")
    longest = longest_context(model)
    length = longest if wanted in ("auto", None) else int(wanted)
    if wanted in ("auto", None):
        length = min(length, num_pages * page_size)
    if length < 1 or num_pages * page_size < length:
        needed = math.ceil(max(length, 1) / page_size) * page_bytes
        raise ConfigError(
            f"max_model_len={length} does not fit the KV pool of {format_bytes(pool_bytes)}, "
            f"{num_pages * page_size} tokens. Set max_model_len to at most {max(num_pages * page_size, 0)} "
            f"or kv_cache_memory_bytes to at least {needed}."
        )
    if length > longest:
        raise ConfigError(
            f"max_model_len={length} is above the {longest} positions that the model's config.json allows; "
            f"lower it, or raise max_position_embeddings with hf_overrides."
        )
    return length, num_pages
