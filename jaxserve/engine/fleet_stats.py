"""What a fleet says of itself as a whole: sums of its replicas' numbers and answers."""

from dataclasses import dataclass, field
from typing import Any

import msgspec

from jaxserve.engine.messages import EngineInfo, ReplicaStats, SchedulerStats

_SUMMED = [name for name in SchedulerStats.__struct_fields__ if name != "replicas"]


def merged_stats(replicas: list[ReplicaStats], num_queued: int, num_queued_tokens: int) -> SchedulerStats:
    """Sums over the replicas, those that wait in the shared queue included, and the replicas' own beside them."""
    stats = SchedulerStats(replicas=replicas)
    for name in _SUMMED:
        setattr(stats, name, sum(getattr(one.stats, name) for one in replicas))
    stats.num_waiting += num_queued
    stats.num_waiting_tokens += num_queued_tokens
    return stats


def merged_info(infos: list[EngineInfo]) -> EngineInfo:
    """The first replica's; limits of requests are the smallest, as any replica may get them."""
    return msgspec.structs.replace(
        infos[0],
        max_model_len=min(info.max_model_len for info in infos),
        num_compilations=sum(info.num_compilations for info in infos),
        num_pending_programs=sum(info.num_pending_programs for info in infos),
    )


@dataclass(slots=True)
class Gathering:
    """Answers to one Call, replica by replica. awaited: indices of those that have not answered."""

    method: str
    awaited: set[int]
    values: dict[int, Any] = field(default_factory=dict[int, Any])
    error: str | None = None

    def value(self) -> Any:
        """One answer for all: true where it is true of each, else the first replica's."""
        values = [self.values[index] for index in sorted(self.values)]
        if all(isinstance(value, bool) for value in values):
            return all(values)
        return values[0]
