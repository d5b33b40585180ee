"""The programs of an engine: what each is called, how it is lowered, and the trees that go in and come out.

A bundle keeps programs without their trees: those follow from our own classes, so that nothing that
describes Python objects has to be read back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxserve.batch.buckets import Bucket, BucketGrid
from jaxserve.core.config import EngineConfig
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.lowering import compiler_options, forward_of, lower_step, packed_spec, specs
from jaxserve.runner.step import DeviceState, Forward, PromptLogprobs, StepOutput, initial_state, make_sample
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.sampler import Sampled
from jaxserve.sampling.state import load_bias, load_row


@dataclass(frozen=True, slots=True)
class Program:
    """One program to compile. arguments, result: trees with the structure of its call; their leaves mean nothing."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    arguments: tuple[Any, ...]
    result: Any
    options: dict[str, str | bool] = field(default_factory=dict[str, str | bool])

    @property
    def in_tree(self) -> Any:
        """As JAX counts it: positional arguments and no named ones."""
        return jax.tree.structure((self.arguments, {}))

    @property
    def out_tree(self) -> Any:
        return jax.tree.structure(self.result)


def state_shapes(config: EngineConfig, has_kv_scales: bool) -> DeviceState:
    """Shapes and dtypes of the device state, without making it."""
    return jax.eval_shape(lambda: initial_state(config, _some_scales(config) if has_kv_scales else None))


def programs_of(
    config: EngineConfig, model: LoadedModel, state: DeviceState, grid: BucketGrid, *, halves: bool
) -> list[Program]:
    """Everything that an engine runs on its device, the programs of the largest buckets first.

    model, state: only shapes and dtypes are read.
    halves: a step is two programs, model and sampler, as on a CPU: the sampler is then compiled once a number
        of rows instead of once a bucket. Elsewhere it is one, so that a step is one launch.
    """
    # The largest first: they take longest, and running out of memory shows at once.
    buckets = list(reversed(grid.all))
    if not halves:
        return [_step(config, model, bucket, state) for bucket in buckets] + _small(config, state)
    one_of_each = {bucket.num_rows: bucket for bucket in buckets}.values()  # the fewest tokens: traced fastest
    forwards = [_forward(config, model, bucket, state) for bucket in buckets]
    return forwards + [_sample(config, model, bucket, state) for bucket in one_of_each] + _small(config, state)


def names_of(bucket: Bucket, *, halves: bool) -> tuple[str, ...]:
    """The programs that a step of this bucket runs, in order."""
    size = f"{bucket.num_tokens}x{bucket.num_rows}"
    return (f"forward-{size}", f"sample-{bucket.num_rows}") if halves else (f"step-{size}",)


SMALL = ("load_row", "load_bias", "load_table", "initial_state")


def _step(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState) -> Program:
    return Program(
        names_of(bucket, halves=False)[0],
        lambda: lower_step(config, model, bucket, state),
        (model.leaves, state, 0),
        (_flat(StepOutput, sampled=_flat(Sampled), prompt=_flat(PromptLogprobs)), state),
        compiler_options(jax.default_backend(), bucket.num_tokens),
    )


def _forward(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState) -> Program:
    inputs = _forward_inputs(config, model, bucket, state)
    return Program(
        names_of(bucket, halves=True)[0],
        lambda: jax.jit(forward_of(config, model, bucket), donate_argnums=1).lower(*inputs),
        inputs,
        (_flat(Forward, sampling=_flat(SamplingBatch), prompt=_flat(PromptLogprobs)), state.paged),
    )


def _sample(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState) -> Program:
    def lower() -> jax.stages.Lowered:
        forward = forward_of(config, model, bucket)
        spec, _ = jax.eval_shape(forward, *_forward_inputs(config, model, bucket, state))
        sample = jax.jit(make_sample(config.num_logprobs), donate_argnums=2)
        return sample.lower(spec.logits_BV, spec.sampling, state.sampling)

    arguments = (0, _flat(SamplingBatch), state.sampling)
    return Program(names_of(bucket, halves=True)[1], lower, arguments, (_flat(Sampled), state.sampling))


def _forward_inputs(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState) -> tuple[Any, ...]:
    return specs(model.leaves), state.paged, state.sampling.last_tokens_R, packed_spec(config, bucket)


def _small(config: EngineConfig, state: DeviceState) -> list[Program]:
    """The updates of one row (its state donated, row index, new contents), and the state to begin with."""
    row = jax.ShapeDtypeStruct((), jnp.int32)
    vocab_size, table = config.model.vocab_size, state.paged.page_table_RM
    bias, counts, mask = (jax.ShapeDtypeStruct((vocab_size,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
    columns = jax.ShapeDtypeStruct(table.shape[1:], jnp.int32)
    return [
        _small_program("load_row", load_row, (state.sampling, row, bias, counts, mask), state.sampling, donated=0),
        _small_program("load_bias", load_bias, (state.sampling, row, bias), state.sampling, donated=0),
        _small_program("load_table", _load_table, (table, row, columns), table, donated=0),
        _small_program(
            "initial_state", lambda scales: initial_state(config, scales), (state.paged.kv_scales_L2K,), state
        ),
    ]


def _small_program(
    name: str, function: Callable[..., Any], arguments: tuple[Any, ...], result: Any, donated: int | None = None
) -> Program:
    return Program(name, lambda: jax.jit(function, donate_argnums=donated).lower(*arguments), arguments, result)


def _load_table(page_table_RM: Array, row: Array, columns_M: Array) -> Array:
    return page_table_RM.at[row].set(columns_M, mode="drop")


def _flat(kind: type[Any], **parts: Any) -> Any:
    """A dataclass of arrays with a number for each, `parts` aside."""
    return kind(**{one.name: parts.get(one.name, 0) for one in fields(kind)})


def _some_scales(config: EngineConfig) -> np.ndarray:
    return np.ones((config.model.num_layers, 2, config.model.num_kv_heads), np.float32)
