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
from jaxserve.core.config import EngineConfig
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.lowering import compiler_options, forward_of, lower_step, packed_spec, specs
from jaxserve.runner.step import DeviceState, ForwardFunction, SampleFunction, StepFunction, join, make_sample
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
    progress: Callable[[str], None],
) -> dict[Bucket, StepFunction]:
    """The step of every bucket, compiled in as many threads as there are cores; a progress line each.

    On a CPU a step is two programs, model and sampler: the sampler is then compiled once a number of
    rows instead of once a bucket. Elsewhere it is one, so that a step is one launch.
    state_spec: the device state's shapes and dtypes (jax.ShapeDtypeStruct leaves).
    """
    leaves_spec = specs(loaded.leaves)
    sample = make_sample(config.num_logprobs)

    def forward_specs(bucket: Bucket) -> tuple[Any, ...]:
        return leaves_spec, state_spec.paged, state_spec.sampling.last_tokens_R, packed_spec(config, bucket)

    def compile_forward(bucket: Bucket) -> ForwardFunction:
        forward = jax.jit(forward_of(config, loaded, bucket), donate_argnums=1)
        return forward.lower(*forward_specs(bucket)).compile()

    def compile_sample(bucket: Bucket) -> SampleFunction:
        forward = forward_of(config, loaded, bucket)
        spec, _ = jax.eval_shape(forward, *forward_specs(bucket))
        return jax.jit(sample, donate_argnums=2).lower(spec.logits_BV, spec.sampling, state_spec.sampling).compile()

    def compile_whole(bucket: Bucket) -> StepFunction:
        return lower_step(config, loaded, bucket, state_spec).compile(compiler_options(jax.default_backend()))

    # The largest first: they take longest, and running out of memory shows at once.
    buckets = list(reversed(grid.all))
    if jax.default_backend() != "cpu":
        return dict(zip(buckets, _in_threads(compile_whole, buckets, progress), strict=True))
    one_of_each = list({bucket.num_rows: bucket for bucket in buckets}.values())  # the fewest tokens: traced fastest
    jobs = [(compile_forward, bucket) for bucket in buckets] + [(compile_sample, bucket) for bucket in one_of_each]
    done = _in_threads(lambda job: job[0](job[1]), jobs, progress)
    samples = {bucket.num_rows: program for bucket, program in zip(one_of_each, done[len(buckets) :], strict=True)}
    return {bucket: join(forward, samples[bucket.num_rows]) for bucket, forward in zip(buckets, done, strict=False)}


def _in_threads(work: Callable[[Any], Any], jobs: list[Any], progress: Callable[[str], None]) -> list[Any]:
    """work of each job, in order, done by a thread a core; a progress line as each ends."""
    num_done, lock = 0, threading.Lock()

    def do(job: Any) -> Any:
        nonlocal num_done
        result = work(job)
        with lock:
            num_done += 1
            progress(f"compiled {num_done}/{len(jobs)} programs")
        return result

    previous = threading.stack_size(_COMPILER_STACK_BYTES)
    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
            return list(pool.map(do, jobs))
    finally:
        threading.stack_size(previous)


def compile_row_programs(state_spec: DeviceState) -> RowPrograms:
    vocab_size = state_spec.sampling.bias_RV.shape[1]
    row = jax.ShapeDtypeStruct((), jnp.int32)
    bias, counts, mask = (jax.ShapeDtypeStruct((vocab_size,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
    columns = jax.ShapeDtypeStruct((state_spec.paged.page_table_RM.shape[1],), jnp.int32)
    sampling = state_spec.sampling
    return RowPrograms(
        load_row=jax.jit(load_row, donate_argnums=0).lower(sampling, row, bias, counts, mask).compile(),
        load_bias=jax.jit(load_bias, donate_argnums=0).lower(sampling, row, bias).compile(),
        load_table=jax.jit(_load_table, donate_argnums=0).lower(state_spec.paged.page_table_RM, row, columns).compile(),
    )


def _load_table(page_table_RM: Array, row: Array, columns_M: Array) -> Array:
    return page_table_RM.at[row].set(columns_M, mode="drop")
