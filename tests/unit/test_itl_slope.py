"""The line through gaps between tokens, from times made by hand."""

import numpy as np
import pytest

from jaxserve.bench.itl_slope import MIN_TOKENS, fit
from jaxserve.bench.server_meter import parse


def times(first_context_len: int, count: int, slope_ms: float, intercept_ms: float) -> np.ndarray:
    """When tokens come whose gap at a context of c tokens is intercept + slope * c."""
    gaps_ms = intercept_ms + slope_ms * (first_context_len + np.arange(1, count))
    return np.concatenate([[0.0], np.cumsum(gaps_ms) / 1e3])


@pytest.mark.parametrize("count", [MIN_TOKENS, 50, 4096])
def test_a_straight_line_is_found(count: int) -> None:
    found = fit(128, times(128, count, slope_ms=3.1e-5, intercept_ms=3.9).tolist())
    assert found.slope_ms == pytest.approx(3.1e-5, rel=1e-6)
    assert found.intercept_ms == pytest.approx(3.9, rel=1e-9)
    assert found.points[0][0] > 128 and found.points[-1][0] < 128 + count


def test_pauses_do_not_bend_it() -> None:
    seconds = times(1000, 2000, slope_ms=3e-5, intercept_ms=4.0)
    for late in (300, 900, 1500, 1990):
        seconds[late:] += 0.5
    found = fit(1000, seconds.tolist())
    assert found.slope_ms == pytest.approx(3e-5, rel=1e-3)
    assert len(found.points) == 64
    assert str(found) == "ITL: 4.0000 ms + 3.000e-05 ms a token of context"


def test_a_servers_counters_are_read_from_its_page() -> None:
    page = """# HELP jaxserve:steps_total Steps.
jaxserve:steps_total{model_name="m"} 40.0
vllm:estimated_flops_per_gpu_total{model_name="m"} 1.0
jaxserve:estimated_flops_per_gpu_total{model_name="m"} 2.5e+13
jaxserve:step_seconds_total{bound="memory",model_name="m"} 3.5
jaxserve:step_seconds_total{bound="host",model_name="m"} 0.25
jaxserve:host_gap_seconds_total{model_name="m"} 0.01
"""
    found = parse(page)
    assert found is not None
    assert (found.num_steps, found.step_flops, found.host_gap_s) == (40, 2.5e13, 0.01)
    assert (found.step_memory_s, found.step_host_s, found.step_compute_s) == (3.5, 0.25, 0)
    assert parse('vllm:num_requests_running{model_name="m"} 1.0') is None
