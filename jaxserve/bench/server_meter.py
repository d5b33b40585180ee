"""The step figures of a server under load, from its own counters on /metrics; other servers have none."""

import re
from collections.abc import Mapping

import httpx

from jaxserve.engine.messages import SchedulerStats

_SAMPLE = re.compile(r"^jaxserve:(\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
_COUNTERS = {
    "steps_total": "num_steps",
    "estimated_flops_per_gpu_total": "step_flops",
    "estimated_read_bytes_per_gpu_total": "step_read_bytes",
    "estimated_write_bytes_per_gpu_total": "step_write_bytes",
    "step_floor_seconds_total": "step_floor_s",
    "host_gap_seconds_total": "host_gap_s",
}


def read(base_url: str, headers: Mapping[str, str]) -> SchedulerStats | None:
    """The meter's counters of now; None where the server has none, or does not show them."""
    try:
        response = httpx.get(f"{base_url}/metrics", headers=dict(headers), timeout=30)
    except httpx.HTTPError:
        return None
    return parse(response.text) if response.status_code == 200 else None


def parse(page: str) -> SchedulerStats | None:
    """The counters on a page of metrics; None where it is not a jaxserve engine's."""
    stats = SchedulerStats()
    is_there = False
    for name, labels, value in _SAMPLE.findall(page):
        if name in _COUNTERS:
            field = _COUNTERS[name]
            number = int(float(value)) if field.startswith("num_") else float(value)
            setattr(stats, field, getattr(stats, field) + number)  # a server may have several engines
            is_there = True
        elif name == "step_seconds_total" and (bound := re.search(r'bound="(\w+)"', labels)):
            field = f"step_{bound[1]}_s"
            setattr(stats, field, getattr(stats, field) + float(value))
    return stats if is_there else None
