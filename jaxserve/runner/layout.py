"""How an engine lies over its devices: the mesh, and where every array of a step has its shards.

A step over several devices is one program under `jax.shard_map`: each device runs the one-device step of its share of
the model, and the shares speak to each other only where `Shards` says so. See docs/adr/0016.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxserve.core.config import EngineConfig, ModelConfig
from jaxserve.core.errors import ConfigError
from jaxserve.layers.shards import WHOLE, Shards, Vocabulary
from jaxserve.models.shard import shard_of
from jaxserve.models.weights import LoadedModel
from jaxserve.runner.step import DeviceState, Forward, PagedState
from jaxserve.sampling.state import SamplingState
from sharding.axes import TENSOR
from sharding.mesh import MeshShape, make_mesh
from sharding.placement import place, shardings
from sharding.rules import spec_of

EVERYWHERE = PartitionSpec()
BY_VOCABULARY = PartitionSpec(None, TENSOR)


@dataclass(frozen=True)
class Layout:
    """mesh: None for one device, whose programs are as if there were no meshes."""

    mesh: Mesh | None = None

    @property
    def shards(self) -> Shards:
        return WHOLE if self.mesh is None else Shards(TENSOR, self.mesh.shape[TENSOR])

    @property
    def devices(self) -> list[Any]:
        return jax.local_devices()[:1] if self.mesh is None else list(self.mesh.devices.flat)

    @property
    def waits(self) -> bool:
        """Whether a step must end before the next begins: a CPU's collectives need a thread a device, all at once."""
        return self.mesh is not None and self.devices[0].platform == "cpu"

    def own(self, config: EngineConfig) -> EngineConfig:
        """The config as one device has it: its share of the model."""
        return replace(config, model=shard_of(config.model, self.shards.size))

    def vocabulary(self, model: ModelConfig) -> Vocabulary:
        return Vocabulary(model.vocab_size, self.shards)

    def place(
        self, axes: tuple[str, ...], shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]
    ) -> jax.Array:
        """A parameter on its devices; see `jaxserve.models.weights.Place`."""
        if self.mesh is None:
            return jax.device_put(make_shard(0))
        return place(self.mesh, spec_of(axes), shape, make_shard)

    def over_devices(self, function: Callable[..., Any], inputs: Any, outputs: Any) -> Callable[..., Any]:
        """A function of one device's shards as one of whole arrays. inputs, outputs: trees of PartitionSpecs."""
        if self.mesh is None:
            return function
        # What is the same everywhere is known to us and not to the checker, which kernels and loops leave in doubt.
        return jax.shard_map(function, mesh=self.mesh, in_specs=inputs, out_specs=outputs, check_vma=False)

    def placed(self, tree: Any, specs: Any) -> Any:
        """Shapes and dtypes of a tree of arrays (or of such), lying where specs, a tree or a prefix of one, say."""
        if self.mesh is None:
            return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)
        spread = jax.tree.broadcast(shardings(self.mesh, specs), tree)
        return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, spread)

    def jit(
        self, function: Callable[..., Any], inputs: tuple[Any, ...], outputs: Any, donated: int | None = None
    ) -> jax.stages.Wrapped:
        """A function of one device's shards, to be lowered with whole arrays. inputs, outputs: trees of specs."""
        if self.mesh is None:
            return jax.jit(function, donate_argnums=donated)
        # Said, not left to the compiler: what is donated must come back as it lay.
        places = shardings(self.mesh, outputs)
        return jax.jit(self.over_devices(function, inputs, outputs), donate_argnums=donated, out_shardings=places)


def make_layout(config: EngineConfig, devices: Sequence[Any] | None = None) -> Layout:
    """The layout that the config asks for. devices: this machine's (all processes') if None.

    Raises ConfigError where there are too few.
    """
    size = config.tensor_parallel_size
    if size == 1:
        return Layout()
    found = jax.devices() if devices is None else devices
    if len(found) < size:
        remedy = (
            "set XLA_FLAGS=--xla_force_host_platform_device_count to split a CPU"
            if found[0].platform == "cpu"
            else "look at CUDA_VISIBLE_DEVICES"
        )
        raise ConfigError(
            f"tensor_parallel_size={size} needs {size} devices, JAX sees {len(found)} of {found[0].device_kind!r}: "
            f"lower it, or {remedy}."
        )
    return Layout(make_mesh(MeshShape(tensor=size), found))


def check_spread(layout: Layout) -> None:
    """Raises ConfigError where a process of a group would have no part of the model."""
    busy = {device.process_index for device in layout.devices} if layout.mesh is not None else {0}
    if len(busy) < jax.process_count():
        raise ConfigError(
            f"tensor_parallel_size={layout.shards.size} lies on {len(busy)} of nnodes={jax.process_count()} hosts: "
            f"set it to the devices of all hosts, {jax.device_count()}, or start fewer hosts."
        )


def leaf_specs(model: LoadedModel) -> list[PartitionSpec]:
    return [spec_of(axes) for axes in model.axes]


def state_specs(state: DeviceState) -> DeviceState:
    return DeviceState(paged_specs(state.paged), sampling_state_specs())


def paged_specs(paged: PagedState) -> PagedState:
    pools: list[Any] = [PartitionSpec(None, None, TENSOR)] * len(paged.pools)
    table: Any = EVERYWHERE
    return PagedState(pools, table, scale_specs(paged.kv_scales_L2K))


def scale_specs(kv_scales_L2K: Any) -> Any:
    """Of the pools' scales, which may be None."""
    return None if kv_scales_L2K is None else PartitionSpec(None, None, TENSOR)


def sampling_state_specs() -> SamplingState:
    specs: dict[str, Any] = {one.name: BY_VOCABULARY for one in fields(SamplingState)}
    specs["last_tokens_R"] = EVERYWHERE
    return SamplingState(**specs)


def forward_specs() -> Forward:
    logits: Any = BY_VOCABULARY
    everywhere: Any = EVERYWHERE
    return Forward(logits, everywhere, everywhere)
