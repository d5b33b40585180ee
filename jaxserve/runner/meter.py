"""The roofline meter: what steps moved and computed, how long they took, and what that time went to.

A step's time runs from the moment the results of the step before were on the host, or, where nothing was to be done
then, from the arrival of new work. Each step has one verdict:

    host     its floor is under half of its time: launches, the host between steps, padding, or kernels far from
             their limits take the larger part
    memory   else, and most of the floor is kernels that bytes limit
    compute  else: operations limit
"""

from collections import deque
from typing import Any

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError
from jaxserve.models.shard import shard_of
from jaxserve.runner.device import Device
from jaxserve.runner.roofline import StepCost, StepCosts, rates_of
from jaxserve.runner.sizes import matrix_itemsize
from jaxserve.schedule.output import SchedulerOutput
from sharding.targets.peaks import Peaks, device_peaks, peaks_of_kind

HOST_SHARE = 0.5  # of a step's time: where the floor is less, the step is bound by neither memory nor compute


class StepMeter:
    """Counts steps from dispatch to collection; any number of them may be on their way at once.

    Times are seconds of one monotonic clock. `totals` are counters since the start, by the names of SchedulerStats.
    """

    def __init__(self, costs: StepCosts) -> None:
        self._costs = costs
        self._flights: deque[StepCost] = deque()
        self._since_s = 0.0  # the running step's time began
        self._follows_step = False  # it began as another step ended
        self._read_bytes = self._write_bytes = self._flops = 0
        self._floor_s = 0.0
        self._seconds = {"memory": 0.0, "compute": 0.0, "host": 0.0, "unknown": 0.0}
        self._num_gaps = 0
        self._gap_s = 0.0

    def restart(self, now_s: float) -> None:
        """Work arrived where there was none: the time since the last step belongs to nobody."""
        self._since_s, self._follows_step = now_s, False

    def dispatched(self, scheduled: SchedulerOutput, now_s: float) -> None:
        """A step has been given to the device."""
        if not self._flights and self._follows_step:
            self._num_gaps += 1
            self._gap_s += now_s - self._since_s
        self._flights.append(self._costs.of(scheduled))

    def collected(self, now_s: float) -> None:
        """The results of the oldest step under way are on the host."""
        cost, step_s = self._flights.popleft(), now_s - self._since_s
        self._read_bytes += cost.read_bytes
        self._write_bytes += cost.write_bytes
        self._flops += cost.flops
        self._floor_s += cost.floor_s
        self._seconds[verdict(cost, step_s)] += step_s
        self._since_s, self._follows_step = now_s, True

    def dropped(self, place: int) -> None:
        """A step under way (0 is the oldest) will not be collected: nobody waits for it. It counts for nothing."""
        del self._flights[place]

    def failed(self, now_s: float) -> None:
        """Steps under way are lost; their time counts for nothing."""
        self._flights.clear()
        self.restart(now_s)

    def totals(self) -> dict[str, Any]:
        return {
            "step_read_bytes": float(self._read_bytes),
            "step_write_bytes": float(self._write_bytes),
            "step_flops": float(self._flops),
            "step_floor_s": self._floor_s,
            **{f"step_{name}_s": seconds for name, seconds in self._seconds.items()},
            "num_host_gaps": self._num_gaps,
            "host_gap_s": self._gap_s,
        }


def verdict(cost: StepCost, step_s: float) -> str:
    """memory, compute or host (see above); unknown where the device's rates are."""
    if cost.floor_s == 0:
        return "unknown"
    if cost.floor_s < HOST_SHARE * step_s:
        return "host"
    return "memory" if cost.memory_s >= cost.compute_s else "compute"


def step_costs(config: EngineConfig, device: Device, peaks: str | None) -> StepCosts:
    """For the steps of this engine, of one device of several.

    peaks: in `device_peaks`' words; None looks for the device's name. Raises ConfigError where the words mean nothing.
    """
    try:
        found = peaks_of_kind(device.kind) if peaks is None else device_peaks(peaks, Peaks(device.kind))
    except ValueError as error:
        raise ConfigError(f"device_peaks={peaks!r}: {error}") from error
    rates = None if found is None else rates_of(found, config.model.dtype)
    share = shard_of(config.model, config.tensor_parallel_size)
    return StepCosts(share, config.pool, rates, itemsize=matrix_itemsize(config.model, device))
