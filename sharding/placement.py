"""Arrays made shard by shard, each process its own."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sharding.axes import TENSOR


def place(
    mesh: Mesh, spec: PartitionSpec, shard_shape: tuple[int, ...], make_shard: Callable[[int], np.ndarray]
) -> jax.Array:
    """The array that `make_shard` describes, one shard a device.

    shard_shape: of each. make_shard: the shard of a place on the tensor axis, 0 if the array has no such axis; called
    for this process's devices alone, once for each different shard.
    """
    sharding = NamedSharding(mesh, spec)
    axis = spec.index(TENSOR) if TENSOR in spec else None
    shape = global_shape(mesh, spec, shard_shape)
    made: dict[int, np.ndarray] = {}

    def shard_at(index: tuple[slice, ...] | None) -> np.ndarray:
        start = 0 if axis is None or index is None else index[axis].start or 0
        number = 0 if axis is None else start // shard_shape[axis]
        if number not in made:
            made[number] = make_shard(number)
        return made[number]

    return jax.make_array_from_callback(shape, sharding, shard_at)


def global_shape(mesh: Mesh, spec: PartitionSpec, shard_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of an array whose shards have this shape."""
    sizes = [1 if name is None else mesh.shape[name] for name in (*spec, *(None,) * (len(shard_shape) - len(spec)))]
    return tuple(size * times for size, times in zip(shard_shape, sizes, strict=True))


def shardings(mesh: Mesh, specs: Any) -> Any:
    """A tree of PartitionSpecs as NamedShardings."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda node: isinstance(node, PartitionSpec)
    )
