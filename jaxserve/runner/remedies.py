"""What would make it fit: single flags with the value nearest to what was asked, each tried before it is named."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxserve.core.config import EngineArgs, ModelConfig
from jaxserve.runner.device import Device, check_memory_share
from jaxserve.runner.memory import dtype_bytes
from jaxserve.runner.sizes import Sizes

type Value = int | float | str
type Fits = Callable[[EngineArgs, ModelConfig, Device], bool]

_HIGHEST_SHARE = 0.98  # of a GPU's memory: the driver and the display need some
_WORDS = {  # how a flag's value is meant; where nothing stands here, exactly so
    "max_model_len": "to at most",
    "max_num_batched_tokens": "to at most",
    "max_num_seqs": "to at most",
    "gpu_memory_utilization": "to at least",
}


def remedies(
    args: EngineArgs, model: ModelConfig, device: Device, sizes: Sizes, num_tokens: int, fits: Fits
) -> dict[str, Value]:
    """Flag -> value that alone makes it fit; a length or pool that was asked for comes first.

    num_tokens: that the pool must hold. fits: whether the engine would start so.
    """

    def works(flag: str, value: Any) -> bool:
        return fits(replace(args, **{flag: value}), model, device)

    found: dict[str, Value | None] = {"max_model_len": None}
    if isinstance(args.max_model_len, int) or args.max_model_len.isdecimal():
        asked = int(args.max_model_len)
        found["max_model_len"] = _largest(1, asked - 1, lambda n: works("max_model_len", n))
    for num_bytes in _pool_candidates(args, device, sizes, num_tokens):
        if works("kv_cache_memory_bytes", num_bytes):
            found["kv_cache_memory_bytes"] = num_bytes
    found["gpu_memory_utilization"] = _share(args, model, device, fits)
    found["max_num_batched_tokens"] = _largest(
        args.max_num_seqs or 1, sizes.num_batched_tokens - 1, lambda n: works("max_num_batched_tokens", n)
    )
    found["max_num_seqs"] = _largest(1, sizes.num_seqs - 1, lambda n: works("max_num_seqs", n))
    if dtype_bytes(sizes.pool.dtype) > 1 and works("kv_cache_dtype", "fp8"):
        found["kv_cache_dtype"] = "fp8"
    if model.dtype == "float32" and fits(args, replace(model, dtype="bfloat16"), device):
        found["dtype"] = "bfloat16"
    return {flag: value for flag, value in found.items() if value is not None}


def advice(found: dict[str, Value], args: EngineArgs, device: Device, sizes: Sizes, num_tokens: int) -> str:
    """The end of the error: which flags to set to what, or how large a device it takes."""
    if not found:
        needed = sizes.weight_bytes + sizes.step_bytes + sizes.reserve_bytes + _pages_bytes(sizes, num_tokens)
        share = 1 if device.is_cpu else args.gpu_memory_utilization
        gib = math.ceil(needed / share / (1 << 30) * 10) / 10
        return f"No single flag makes it fit; it takes a device of {gib:.1f} GiB or a smaller model."
    more = "to at least" if _is_too_small(args, sizes, num_tokens) else "to at most"
    words = {**_WORDS, "kv_cache_memory_bytes": more}
    return "Set " + " or ".join(f"{flag} {words.get(flag, 'to')} {value}" for flag, value in found.items()) + "."


def _pages_bytes(sizes: Sizes, num_tokens: int) -> int:
    return math.ceil(num_tokens / sizes.page_size) * sizes.page_bytes


def _is_too_small(args: EngineArgs, sizes: Sizes, num_tokens: int) -> bool:
    asked = args.kv_cache_memory_bytes
    return asked is None or asked < _pages_bytes(sizes, num_tokens)


def _pool_candidates(args: EngineArgs, device: Device, sizes: Sizes, num_tokens: int) -> list[int]:
    """The least that holds the tokens where too little was asked, all that is left where too much was."""
    if args.kv_cache_memory_bytes is None and not device.is_cpu:
        return []  # the pool already takes everything
    if _is_too_small(args, sizes, num_tokens):
        return [_pages_bytes(sizes, num_tokens)]
    return [] if device.memory_bytes is None else [device.memory_bytes - sizes.weight_bytes - sizes.step_bytes]


def _share(args: EngineArgs, model: ModelConfig, device: Device, fits: Fits) -> float | None:
    """The least share of a GPU's memory, in hundredths, that suffices."""
    if device.is_cpu or device.memory_bytes is None:
        return None
    whole = device.memory_bytes / check_memory_share(args.gpu_memory_utilization)
    for percent in range(math.floor(args.gpu_memory_utilization * 100) + 1, round(_HIGHEST_SHARE * 100) + 1):
        share = percent / 100
        if fits(replace(args, gpu_memory_utilization=share), model, replace(device, memory_bytes=int(whole * share))):
            return share
    return None


def _largest(low: int, high: int, fits: Callable[[int], bool]) -> int | None:
    """The largest number in [low, high] that fits, where everything below one that fits does too."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
