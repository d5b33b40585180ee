"""What a step and a page are as asked for, and what memory they take: all that the size of the pool follows from."""

from dataclasses import dataclass

import jax

from jaxserve.core.config import EngineArgs, ModelConfig, PoolConfig
from jaxserve.core.errors import ConfigError
from jaxserve.models.shard import shard_of
from jaxserve.runner.device import Device
from jaxserve.runner.memory import dtype_bytes, kv_bytes_per_token, step_bytes, weight_bytes
from pallas_kernels import pool_head_dim

RESERVE_BYTES = 512 << 20  # of a GPU: compiled programs, the libraries' workspaces, fragments
_LARGE_MEMORY_BYTES = 60 << 30  # of what XLA may allocate: an H100's and an H200's, and whatever has as much
_POOL_DTYPES = {  # names users know -> JAX's
    "bfloat16": "bfloat16",
    "float16": "float16",
    "float32": "float32",
    "fp8": "float8_e4m3fn",
    "fp8_e4m3": "float8_e4m3fn",
    "fp8_e5m2": "float8_e5m2",
}


@dataclass(frozen=True, slots=True)
class Sizes:
    """Limits of a step, the form of a page, and the bytes that are not the pool's.

    num_seqs, num_batched_tokens: rows and tokens of the largest step. page_bytes: of one page over all layers.
    reserve_bytes: left alone beside what is counted, 0 on a CPU.
    """

    num_seqs: int
    num_batched_tokens: int
    page_size: int
    pool: PoolConfig
    page_bytes: int
    weight_bytes: int
    step_bytes: int
    reserve_bytes: int


def sizes_of(args: EngineArgs, model: ModelConfig, device: Device) -> Sizes:
    """Of one device of those the model is cut over. Raises ConfigError where a flag has no meaning by itself or the
    model cannot be cut so; whether it fits is not asked here."""
    if args.tensor_parallel_size < 1:
        raise ConfigError(f"tensor_parallel_size={args.tensor_parallel_size} must be at least 1.")
    model = shard_of(model, args.tensor_parallel_size)
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
    needed = step_bytes(model, pool, num_tokens=budget, num_rows=num_seqs)
    itemsize = matrix_itemsize(model, device)
    reserve = 0 if device.is_cpu else RESERVE_BYTES
    if args.compile_in_background and not device.is_cpu:
        # XLA's autotuner runs beside the steps: the largest product on buffers of its own, its results like a step's.
        experts = 2 * model.num_experts * model.moe_intermediate_size
        rows = max(model.vocab_size, 2 * model.intermediate_size, experts)
        reserve += rows * model.hidden_size * itemsize + needed
    return Sizes(
        num_seqs=num_seqs,
        num_batched_tokens=budget,
        page_size=page_size,
        pool=pool,
        page_bytes=page_size * kv_bytes_per_token(model, pool),
        weight_bytes=weight_bytes(model, matrix_itemsize=itemsize),
        step_bytes=needed,
        reserve_bytes=reserve,
    )


def matrix_itemsize(model: ModelConfig, device: Device) -> int:
    """Bytes of a number of the matrices as they lie on the device (see `weights.widened`)."""
    return dtype_bytes(model.dtype) if device.has_16_bit_products else 4


def _step_limits(args: EngineArgs, device: Device) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens); one that is unset follows the one that is."""
    num_seqs, budget = args.max_num_seqs, args.max_num_batched_tokens
    if num_seqs is None:
        default = 64 if device.is_cpu else 1024 if (device.memory_bytes or 0) >= _LARGE_MEMORY_BYTES else 256
        num_seqs = default if budget is None else min(default, budget)
    if budget is None:
        budget = max(512 if device.is_cpu else 8192, num_seqs)
    return num_seqs, budget


def _pool(args: EngineArgs, model: ModelConfig, device: Device, page_size: int) -> PoolConfig:
    """What a number of the pool is, and how many a head has there."""
    known = {"auto": model.dtype, **_POOL_DTYPES}
    if args.kv_cache_dtype not in known:
        raise ConfigError(f"kv_cache_dtype={args.kv_cache_dtype!r} is unknown; choose one of {', '.join(known)}.")
    dtype = known[args.kv_cache_dtype]
    q = jax.ShapeDtypeStruct((1, model.num_heads, model.head_dim), model.dtype)
    pool = jax.ShapeDtypeStruct((1, 2, model.num_kv_heads, page_size, model.head_dim), dtype)
    return PoolConfig(dtype, pool_head_dim(q, pool, device.compute_capability))
