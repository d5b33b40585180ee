# pyright: basic, reportMissingImports=false
# (triton and jax-triton are optional, and ship no types)
"""The one door to jax-triton: whether it can be had, and for which GPU it compiles."""

import os
from functools import lru_cache
from types import ModuleType
from typing import Any

import jax

_HOPPER = 90
_LEAST = 80  # Ampere: the first with bfloat16


@lru_cache(maxsize=1)
def load() -> ModuleType:
    """The module `jax_triton`. Raises ImportError where it or triton is not installed."""
    # From triton 3.9 on, which warns where this is unset, until 3.10 turns it off: multiply-adds stay fused.
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    import triton.backends.nvidia.driver as driver

    # jax-triton 0.4.1 imports a name that triton has from 3.7 on. Without it the whole NVIDIA backend would be
    # replaced by a stub in silence. The name matters only to TMA descriptors of TF32, which no kernel here has.
    if not hasattr(driver, "TMA_TF32"):
        driver.TMA_TF32 = 0
    import jax_triton

    return jax_triton


@lru_cache(maxsize=1)
def missing() -> str | None:
    """Why jax-triton cannot be used, or None."""
    try:
        load()
    except ImportError as error:
        return f"jax-triton is not installed, see the extra jaxserve[triton] ({error})"
    return None


def missing_on(device: Any) -> str | None:
    """Why kernels of jax-triton cannot run on this device of JAX, or None."""
    found = capability_of(device)
    if found is None or found < _LEAST:
        return f"{device.device_kind} is no NVIDIA GPU of compute capability 8.0 or later"
    return missing()


def capability_of(device: Any) -> int | None:
    """Of a device of JAX: 89 for "8.9"; None for what is no NVIDIA GPU."""
    text = str(getattr(device, "compute_capability", ""))
    major, _, minor = text.partition(".")
    return 10 * int(major) + int(minor) if major.isdigit() and minor.isdigit() else None


def compute_capability() -> int:
    """Of the first GPU; compiling without one aims at Hopper."""
    return capability_of(jax.devices()[0]) or _HOPPER
