"""Which devices each replica of a fleet may see, told by environment variables, without starting JAX here."""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError

VISIBLE = "CUDA_VISIBLE_DEVICES"
PLATFORMS = "JAX_PLATFORMS"
THREADS = "NPROC"  # how many threads XLA's CPU client takes, where it is set
CUDA_PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def visible_gpus(environment: Mapping[str, str], devices: Path = Path("/dev")) -> list[str]:
    """Names of the NVIDIA GPUs that JAX would use, as CUDA_VISIBLE_DEVICES takes them; none where it uses the CPU."""
    platforms = [name for name in environment.get(PLATFORMS, "").split(",") if name]
    if platforms and platforms[0] not in ("cuda", "gpu"):
        return []
    if not any(importlib.util.find_spec(plugin) for plugin in CUDA_PLUGINS):
        return []
    if VISIBLE in environment:
        return [name.strip() for name in environment[VISIBLE].split(",") if name.strip()]
    numbers = [path.name.removeprefix("nvidia") for path in devices.glob("nvidia[0-9]*")]
    return [str(index) for index in range(len(numbers))]


def environments(args: EngineArgs, gpus: list[str]) -> list[dict[str, str]]:
    """For each replica the variables that its process gets: tensor_parallel_size GPUs of its own each.

    Without a GPU there is nothing to divide but the processor's threads.
    Raises ConfigError where there are too few GPUs.
    """
    num_replicas, size = args.data_parallel_size, args.tensor_parallel_size
    if not gpus:
        num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = str(max(1, num_processors // num_replicas))
        return [{} if THREADS in os.environ else {THREADS: threads} for _ in range(num_replicas)]
    if num_replicas * size > len(gpus):
        raise ConfigError(
            f"data_parallel_size={num_replicas} replicas of tensor_parallel_size={size} need {num_replicas * size} "
            f"GPUs, {len(gpus)} are visible ({','.join(gpus)}): lower one of the two, look at {VISIBLE}, "
            f"or set {PLATFORMS}=cpu to run without GPUs."
        )
    # JAX would fall back to the CPU where a GPU cannot be used, and the replica would be up and hopelessly slow.
    slices = [gpus[start : start + size] for start in range(0, num_replicas * size, size)]
    return [{VISIBLE: ",".join(names), PLATFORMS: "cuda"} for names in slices]
