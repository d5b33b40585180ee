"""Devices to compile for that need not be there: their public attributes are kept as data beside this file.

JAX compiles for them where XLA's CUDA compiler is installed (`uv sync --group cuda-compiler`, or the
cuda13 extra); no GPU and no driver are needed. Kernels, fusions, memory and command buffers come out
as on the device; tiles of matrix products do not, as XLA chooses those by trying them on it.
"""

import re
from importlib import resources
from typing import Any

from jax.experimental import topologies


def known_targets() -> list[str]:
    """Names that `target_devices` takes, one a file."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix(_SUFFIX) for file in files if file.name.endswith(_SUFFIX))


def target_devices(
    name: str, *, num_hosts: int = 1, devices_per_host: int = 1, memory_bytes: int | None = None
) -> list[Any]:
    """JAX devices of this kind in one slice, host after host: for shardings of shapes, not to hold arrays.

    memory_bytes: what programs may use of each device's memory, 80 % of it if None. XLA computes values
        again rather than keep them where inputs and temporaries need more.
    Raises ValueError for an unknown name, RuntimeError where the CUDA compiler is not installed.
    """
    known = known_targets()
    if name not in known:
        raise ValueError(f"target {name!r} is unknown; choose one of {', '.join(known)}")
    config = (resources.files(__package__) / (name + _SUFFIX)).read_text()
    if memory_bytes is not None:  # of a device without an allocator to ask XLA counts on 80 %
        config = re.sub(r"device_memory_size: \d+", f"device_memory_size: {memory_bytes * 5 // 4}", config)
    shape = f"1x{num_hosts}x{devices_per_host}"
    try:
        return topologies.get_topology_desc(platform="cuda", target_config=config, topology=shape).devices
    except NotImplementedError as error:
        raise RuntimeError(
            "compiling for a GPU that is not there needs XLA's CUDA compiler: the cuda13 extra of jaxserve, or "
            "jax-cuda13-plugin and nvidia-cuda-nvcc"
        ) from error


_SUFFIX = ".txtpb"
