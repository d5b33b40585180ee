"""What devices have and can do at most, by name or in so many words: data for plans, nothing is looked up."""

import re
import tomllib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

_BYTES = {
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_NUMBER = re.compile(r"(\d+(?:\.\d*)?(?:e\d+)?)\s*([a-z]*)(?:/s)?", re.IGNORECASE)
_KEYS = {"memory": "memory_bytes", "bandwidth": "bandwidth", "tflops": "tflops", "tflops_float32": "tflops_float32"}


@dataclass(frozen=True, slots=True)
class Peaks:
    """A device's memory, bytes; bandwidth, bytes a second; TFLOP a second in 16 bits and in float32.

    None where unknown. compute_capability: of an NVIDIA GPU, such as "9.0".
    """

    kind: str
    memory_bytes: int | None = None
    bandwidth: float | None = None
    tflops: float | None = None
    tflops_float32: float | None = None
    compute_capability: str | None = None


@cache
def known_devices() -> dict[str, Peaks]:
    """The devices with a name, from devices.toml."""
    text = (resources.files(__package__ or "") / "devices.toml").read_text(encoding="utf-8")
    return {name: Peaks(**entry) for name, entry in tomllib.loads(text).items()}


def peaks_of_kind(kind: str) -> Peaks | None:
    """Of the device that its driver calls so, such as "NVIDIA H200"; None where it is unknown."""
    return next((peaks for peaks in known_devices().values() if peaks.kind == kind), None)


def device_peaks(text: str, here: Peaks) -> Peaks:
    """ "h200", "memory=24GiB,bandwidth=1008GB/s,tflops=165", or a name and what differs: "h200,bandwidth=4.3TB/s".

    here: the processor that "cpu" means. Raises ValueError saying what is wrong and what is known.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    named = {**known_devices(), "cpu": here}
    if "=" in first:
        return _described(Peaks("described device"), [first, *rest])
    if first.lower() not in named:
        raise ValueError(
            f"device {first!r} is unknown; choose one of {', '.join(sorted(named))}, or describe it: "
            "memory=24GiB,bandwidth=1008GB/s,tflops=165"
        )
    return _described(named[first.lower()], rest)


def _described(base: Peaks, parts: list[str]) -> Peaks:
    changes: dict[str, Any] = {}
    for part in parts:
        key, _, value = (side.strip() for side in part.partition("="))
        if key == "compute_capability" and re.fullmatch(r"\d+\.\d", value):
            changes[key] = value
        elif key in _KEYS:
            changes[_KEYS[key]] = _number(key, value)
        else:
            raise ValueError(f"{part!r} describes no device; known are {', '.join(_KEYS)} and compute_capability=9.0")
    return replace(base, **changes)


def _number(key: str, value: str) -> float | int:
    """A number above 0 in the key's own unit: bytes (bytes a second), or TFLOP a second."""
    found = _NUMBER.fullmatch(value)
    unit = found[2].lower() if found else ""
    units = {"": 1} if key.startswith("tflops") else {"": 1, **_BYTES}
    if found is None or unit not in units or float(found[1]) <= 0:
        example = "165" if key.startswith("tflops") else "24GiB" if key == "memory" else "1008GB/s"
        raise ValueError(f"{key}={value}: a number above 0 is wanted, such as {key}={example}")
    number = float(found[1]) * units[unit]
    return int(number) if key == "memory" else number
