"""The mesh: devices by replica, stage and slice."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import AxisType, Mesh

from sharding.axes import ALL


@dataclass(frozen=True, slots=True)
class MeshShape:
    """How many devices each axis has."""

    data: int = 1
    stage: int = 1
    tensor: int = 1

    @property
    def num_devices(self) -> int:
        return math.prod(self.sizes)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.data, self.stage, self.tensor


def make_mesh(shape: MeshShape, devices: Sequence[Any]) -> Mesh:
    """The first devices in order: slices of one layer are neighbours, on one host as far as it has devices.

    devices: of all processes, host after host, as `jax.devices()` lists them; those of `targets` will do for compiling.
    Raises ValueError where there are too few.
    """
    if len(devices) < shape.num_devices:
        raise ValueError(f"a mesh of {shape.num_devices} devices needs more than the {len(devices)} there are")
    grid = np.array(devices[: shape.num_devices], dtype=object).reshape(shape.sizes)
    return Mesh(grid, ALL, axis_types=(AxisType.Auto,) * len(ALL))
