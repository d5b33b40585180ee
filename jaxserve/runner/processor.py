"""What this machine's processor can do."""

import hashlib
import platform
from pathlib import Path

_BFLOAT16_FEATURES = {"avx512_bf16", "amx_bf16", "bf16"}  # x86, x86 with matrix tiles, Arm


def processor_features() -> str:
    """The instruction-set extensions, as /proc/cpuinfo lists them; elsewhere the processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def multiplies_bfloat16() -> bool:
    """Whether there are instructions for it. Without, every product widens its operands to float32 first."""
    return not _BFLOAT16_FEATURES.isdisjoint(processor_features().split())


def processor_digest() -> str:
    """A short name of this processor's instruction set: machine code for one is not for another."""
    return hashlib.sha256(processor_features().encode()).hexdigest()[:12]
