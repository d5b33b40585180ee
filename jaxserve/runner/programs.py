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
from jaxserve.runner.layout import (
    BY_VOCABULARY,
    EVERYWHERE,
    Layout,
    forward_specs,
    leaf_specs,
    paged_specs,
    sampling_state_specs,
    scale_specs,
    state_specs,
)
from jaxserve.runner.lowering import compiler_options, forward_of, lower_step, packed_spec, sample_of
from jaxserve.runner.step import DeviceState, Forward, PromptLogprobs, StepOutput, initial_state
from jaxserve.sampling.batch import SamplingBatch
from jaxserve.sampling.sampler import Sampled
from jaxserve.sampling.state import SamplingState, load_bias, load_row


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


def state_shapes(config: EngineConfig, layout: Layout, *, has_kv_scales: bool) -> DeviceState:
    """Shapes and dtypes of the device state, over all devices, without making it."""
    own = layout.own(config)
    shape = (own.model.num_layers, 2, own.model.num_kv_heads * layout.shards.size)
    scales = jax.ShapeDtypeStruct(shape, jnp.float32) if has_kv_scales else None
    local = jax.eval_shape(lambda: initial_state(own, np.ones((*shape[:2], 1)) if has_kv_scales else None))
    begin = layout.over_devices(lambda scales: initial_state(own, scales), (scale_specs(scales),), state_specs(local))
    return jax.eval_shape(begin, scales)


def programs_of(
    config: EngineConfig,
    model: LoadedModel,
    state: DeviceState,
    grid: BucketGrid,
    *,
    halves: bool,
    layout: Layout | None = None,
) -> list[Program]:
    """Everything that an engine runs on its device, the programs of the largest buckets first.

    model, state: only shapes and dtypes are read.
    halves: a step is two programs, model and sampler, as on a CPU: the sampler is then compiled once a number
        of rows instead of once a bucket. Elsewhere it is one, so that a step is one launch.
    layout: one device if None.
    """
    layout = layout or Layout()
    # The largest first: they take longest, and running out of memory shows at once.
    buckets = list(reversed(grid.all))
    if not halves:
        return [_step(config, model, bucket, state, layout) for bucket in buckets] + _small(config, state, layout)
    one_of_each = {bucket.num_rows: bucket for bucket in buckets}.values()  # the fewest tokens: traced fastest
    forwards = [_forward(config, model, bucket, state, layout) for bucket in buckets]
    samples = [_sample(config, model, bucket, state, layout) for bucket in one_of_each]
    return forwards + samples + _small(config, state, layout)


def names_of(bucket: Bucket, *, halves: bool) -> tuple[str, ...]:
    """The programs that a step of this bucket runs, in order."""
    size = f"{bucket.num_tokens}x{bucket.num_rows}"
    return (f"forward-{size}", f"sample-{bucket.num_rows}") if halves else (f"step-{size}",)


SMALL = ("load_row", "load_bias", "load_table", "initial_state")


def _step(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState, layout: Layout) -> Program:
    return Program(
        names_of(bucket, halves=False)[0],
        lambda: lower_step(config, model, bucket, state, layout=layout),
        (model.leaves, state, 0),
        (_flat(StepOutput, sampled=_flat(Sampled), prompt=_flat(PromptLogprobs)), state),
        compiler_options(jax.default_backend(), bucket.num_tokens),
    )


def _forward(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState, layout: Layout) -> Program:
    inputs = (model.leaves, state.paged, state.sampling.last_tokens_R, packed_spec(config, bucket))
    forward, places = _placed_forward(config, model, bucket, state, layout)
    return Program(
        names_of(bucket, halves=True)[0],
        lambda: forward.lower(*layout.placed(inputs, places)),
        inputs,
        (_flat(Forward, sampling=_flat(SamplingBatch), prompt=_flat(PromptLogprobs)), state.paged),
    )


def _placed_forward(
    config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState, layout: Layout
) -> tuple[jax.stages.Wrapped, tuple[Any, ...]]:
    """The model's half, to be lowered, and where its inputs lie."""
    paged = paged_specs(state.paged)
    places = (leaf_specs(model), paged, EVERYWHERE, EVERYWHERE)
    return layout.jit(forward_of(config, model, bucket, layout), places, (forward_specs(), paged), donated=1), places


def _sample(config: EngineConfig, model: LoadedModel, bucket: Bucket, state: DeviceState, layout: Layout) -> Program:
    def lower() -> jax.stages.Lowered:
        forward, _ = _placed_forward(config, model, bucket, state, layout)
        inputs = (model.leaves, state.paged, state.sampling.last_tokens_R, packed_spec(config, bucket))
        spec, _ = jax.eval_shape(forward, *inputs)
        places = (BY_VOCABULARY, EVERYWHERE, sampling_state_specs())
        sample = layout.jit(sample_of(config, layout), places, (EVERYWHERE, places[2]), donated=2)
        return sample.lower(*layout.placed((spec.logits_BV, spec.sampling, state.sampling), places))

    arguments = (0, _flat(SamplingBatch), state.sampling)
    return Program(names_of(bucket, halves=True)[1], lower, arguments, (_flat(Sampled), state.sampling))


def _small(config: EngineConfig, state: DeviceState, layout: Layout) -> list[Program]:
    """The updates of one row (its state donated, row index, new contents), and the state to begin with."""
    row = jax.ShapeDtypeStruct((), jnp.int32)
    vocabulary, own, table = layout.vocabulary(config.model), layout.own(config), state.paged.page_table_RM
    whole = (jax.ShapeDtypeStruct((vocabulary.size,), dtype) for dtype in (jnp.float32, jnp.int32, jnp.bool_))
    bias, counts, mask = whole
    columns = jax.ShapeDtypeStruct(table.shape[1:], jnp.int32)
    sampling = sampling_state_specs()

    def set_row(state: SamplingState, row: Array, *whole: Array) -> SamplingState:
        return load_row(state, row, *map(vocabulary.own, whole))

    def set_bias(state: SamplingState, row: Array, bias_V: Array) -> SamplingState:
        return load_bias(state, row, vocabulary.own(bias_V))

    def begin(kv_scales_L2K: Array | None) -> DeviceState:
        return initial_state(own, kv_scales_L2K)

    def program(name: str, function: Callable[..., Any], arguments: tuple[Any, ...], place: Any) -> Program:
        """An update of its first argument, which lies at `place`; the others are everywhere."""
        places = (place, *(EVERYWHERE for _ in arguments[1:]))
        jitted = layout.jit(function, places, place, donated=0)
        return Program(name, lambda: jitted.lower(*layout.placed(arguments, places)), arguments, arguments[0])

    scales = state.paged.kv_scales_L2K
    first = layout.jit(begin, (scale_specs(scales),), state_specs(state))
    return [
        program("load_row", set_row, (state.sampling, row, bias, counts, mask), sampling),
        program("load_bias", set_bias, (state.sampling, row, bias), sampling),
        program("load_table", _load_table, (table, row, columns), EVERYWHERE),
        Program(
            "initial_state", lambda: first.lower(*layout.placed((scales,), (scale_specs(scales),))), (scales,), state
        ),
    ]


def _load_table(page_table_RM: Array, row: Array, columns_M: Array) -> Array:
    return page_table_RM.at[row].set(columns_M, mode="drop")


def _flat(kind: type[Any], **parts: Any) -> Any:
    """A dataclass of arrays with a number for each, `parts` aside."""
    return kind(**{one.name: parts.get(one.name, 0) for one in fields(kind)})
