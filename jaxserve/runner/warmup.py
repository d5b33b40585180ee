"""Compiling everything before the first request: each bucket's step and the programs that load a row."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxserve.batch.buckets import Bucket, BucketGrid
from jaxserve.batch.step_batch import packed_size
from jaxserve.core.config import EngineConfig
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.step import DeviceState, make_step
from jaxserve.sampling.state import load_bias, load_row

_COMPILER_STACK_BYTES = 64 << 20  # XLA recurses deeply over an unrolled model


@dataclass(frozen=True, slots=True)
class RowPrograms:
    """Compiled updates of one row's device state (state donated, row index, new contents)."""

    load_row: Callable[..., Any]
    load_bias: Callable[..., Any]
    load_table: Callable[..., Array]


def compile_steps(
    config: EngineConfig,
    loaded: LoadedModel,
    state_spec: DeviceState,
    grid: BucketGrid,
    num_logprobs: int,
    progress: Callable[[str], None],
) -> dict[Bucket, Callable[..., Any]]:
    """One executable a bucket, compiled in as many threads as there are cores; a progress line each.

    state_spec: the device state's shapes and dtypes (jax.ShapeDtypeStruct leaves).
    """
    leaves_spec = _specs(loaded.leaves)
    page_size = config.cache.page_size
    done = 0
    lock = threading.Lock()

    def compile_one(bucket: Bucket) -> Callable[..., Any]:
        nonlocal done
        step = jax.jit(make_step(config.model, loaded, bucket, page_size, num_logprobs), donate_argnums=(1,))
        packed = jax.ShapeDtypeStruct((packed_size(bucket, page_size),), jnp.int32)
        compiled = step.lower(leaves_spec, state_spec, packed).compile()
        with lock:
            done += 1
            progress(f"compiled {done}/{len(grid.all)} steps ({bucket.num_tokens} tokens, {bucket.num_rows} rows)")
        return compiled

    previous = threading.stack_size(_COMPILER_STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            # The largest first: they take longest, and running out of memory shows at once.
            executables = list(pool.map(compile_one, reversed(grid.all)))
    finally:
        threading.stack_size(previous)
    return dict(zip(reversed(grid.all), executables, strict=True))


def compile_row_programs(state_spec: DeviceState) -> RowPrograms:
    vocab_size = state_spec.sampling.bias_RV.shape[1]
    row = jax.ShapeDtypeStruct((), jnp.int32)
    bias, counts, mask = (jax.ShapeDtypeStruct((vocab_size,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
    columns = jax.ShapeDtypeStruct((state_spec.page_table_RM.shape[1],), jnp.int32)
    sampling = state_spec.sampling
    return RowPrograms(
        load_row=jax.jit(load_row, donate_argnums=0).lower(sampling, row, bias, counts, mask).compile(),
        load_bias=jax.jit(load_bias, donate_argnums=0).lower(sampling, row, bias).compile(),
        load_table=jax.jit(_load_table, donate_argnums=0).lower(state_spec.page_table_RM, row, columns).compile(),
    )


def _load_table(page_table_RM: Array, row: Array, columns_M: Array) -> Array:
    return page_table_RM.at[row].set(columns_M, mode="drop")


def _specs(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
