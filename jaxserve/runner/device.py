"""The device an engine runs on, or is planned for."""

import os
from dataclasses import dataclass, replace

import jax

from jaxserve.core.errors import ConfigError
from jaxserve.runner.memory import host_memory_bytes
from jaxserve.runner.processor import multiplies_bfloat16


@dataclass(frozen=True, slots=True)
class Device:
    """What of a device decides how much fits.

    memory_bytes: what XLA may allocate there, of a CPU the machine's; None where unknown.
    compute_capability: of a GPU, such as "9.0". has_16_bit_products: without, 16-bit weights are kept as float32.
    """

    platform: str
    kind: str
    memory_bytes: int | None
    compute_capability: str | None = None
    has_16_bit_products: bool = True

    @property
    def is_cpu(self) -> bool:
        return self.platform == "cpu"

    def one_of(self, num_devices: int) -> "Device":
        """One of several: a GPU has its own memory, a CPU's devices share the machine's."""
        if not self.is_cpu or self.memory_bytes is None:
            return self
        return replace(self, memory_bytes=self.memory_bytes // max(1, num_devices))


def check_memory_share(gpu_memory_utilization: float) -> float:
    """The share as XLA is told, three decimals. Raises ConfigError where it is none."""
    if not 0 < gpu_memory_utilization <= 1:
        raise ConfigError(
            f"gpu_memory_utilization={gpu_memory_utilization} is outside (0, 1]; 0.92 leaves others some room."
        )
    return max(round(gpu_memory_utilization, 3), 0.001)


def this_cpu() -> Device:
    """This machine's processor and memory, found without starting JAX's backend."""
    return Device("cpu", "cpu", host_memory_bytes(), has_16_bit_products=multiplies_bfloat16())


def claim_device(gpu_memory_utilization: float) -> Device:
    """Start JAX's backend with the wished share of the device's memory and look at the first device."""
    share = check_memory_share(gpu_memory_utilization)
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{share:.3f}")
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return this_cpu()
    stats = device.memory_stats()
    capability = getattr(device, "compute_capability", None)
    return Device(device.platform, device.device_kind, stats.get("bytes_limit") if stats else None, capability)
