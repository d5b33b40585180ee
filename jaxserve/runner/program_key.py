"""What compiled programs depend upon: this machine and its software, and the numbers of the engine.

Both come as flat dictionaries of names and plain JSON values, so that a bundle can say which of them differs.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax

import pallas_kernels
from jaxserve.core.config import EngineConfig, ModelConfig
from jaxserve.runner.lowering import compiler_options
from jaxserve.runner.processor import processor_digest

Key = dict[str, Any]

_PACKAGES = (
    "jaxserve",
    "jax",
    "jaxlib",
    "flax",
    "jax-triton",
    "jax-cuda12-plugin",
    "jax-cuda12-pjrt",
    "jax-cuda13-plugin",
    "jax-cuda13-pjrt",
)
_OPTIONS = ("jax_enable_x64", "jax_default_matmul_precision", "jax_threefry_partitionable")
_DRIVER = Path("/proc/driver/nvidia/version")
# The rooms and files of jaxserve that decide what is in a program, and how it is called.
_SOURCES = (
    "batch",
    "layers",
    "models",
    "sampling",
    "core/config.py",
    "runner/layout.py",
    "runner/lowering.py",
    "runner/programs.py",
    "runner/step.py",
)


def machine_key() -> Key:
    """The device, its software, and the sources that the programs are made from."""
    device: Any = jax.local_devices()[0]
    on_cpu = device.platform == "cpu"
    versions = {f"{name} version": _version(name) for name in _PACKAGES}
    return versions | {
        "digest of jaxserve's sources": sources_digest(),
        "python version": ".".join(platform.python_version_tuple()[:2]),
        "platform": device.platform,
        "platform version": device.client.platform_version,
        "machine": platform.machine(),
        "processor": processor_digest() if on_cpu else None,
        "driver": None if on_cpu else _driver(),
        "device kind": device.device_kind,
        "compute capability": getattr(device, "compute_capability", None),
        "core count": getattr(device, "core_count", None),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        **{name: getattr(jax.config, name) for name in _OPTIONS},
    }


def model_key(model: ModelConfig) -> Key:
    """The numbers of the model; the ids of its special tokens are in no program."""
    numbers = asdict(model)
    del numbers["bos_token_id"], numbers["eos_token_ids"]
    return _plain({f"model.{name}": value for name, value in numbers.items()})


def engine_key(config: EngineConfig, *, matrix_itemsize: int, has_kv_scales: bool) -> Key:
    """The numbers that shape the programs. matrix_itemsize: see `sizes.matrix_itemsize`."""
    cache, scheduler = config.cache, config.scheduler
    return _plain(
        {
            "tensor_parallel_size": config.tensor_parallel_size,
            "page_size": cache.page_size,
            "num_pages": cache.num_pages,
            "kv_cache_dtype": config.pool.dtype,
            "pool head_dim": config.pool.head_dim,
            "has KV scales": has_kv_scales,
            "max_num_seqs": scheduler.max_num_seqs,
            "max_num_batched_tokens": scheduler.max_num_batched_tokens,
            "max_model_len": scheduler.max_model_len,
            "max_logprobs": config.num_logprobs,
            "attention_implementation": config.attention_implementation,
            "bytes of a weight": matrix_itemsize,
            "compiler options": [compiler_options(jax.default_backend(), num_tokens) for num_tokens in (1, 1 << 20)],
        }
    )


def sources_digest() -> str:
    """Of every file that a program is made from: kernels, layers, models, sampler, the step."""
    root, kernels = Path(__file__).parents[1], Path(pallas_kernels.__file__).parent
    digest = hashlib.sha256()
    for place in (kernels, *(root / name for name in _SOURCES)):
        for file in [place] if place.is_file() else sorted(place.rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                name = file.relative_to(root.parent if file.is_relative_to(root) else kernels.parent)
                digest.update(f"{name.as_posix()}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    try:
        return _DRIVER.read_text().splitlines()[0]
    except (OSError, IndexError):
        return None


def _plain(key: Key) -> Key:
    """As it comes back from JSON."""
    return json.loads(json.dumps(key))
