"""The roofline meter: seconds, gaps and verdicts from told times, and what people and dashboards read of them."""

import msgspec
import pytest

from jaxserve.core.config import ModelConfig, PoolConfig
from jaxserve.core.outputs import EngineOutput
from jaxserve.engine.messages import SchedulerStats
from jaxserve.engine.stats_log import StatsLog
from jaxserve.engine.step_figures import figures_between
from jaxserve.runner.meter import StepMeter, verdict
from jaxserve.runner.roofline import Rates, StepCost, StepCosts, rates_of
from jaxserve.schedule.output import ScheduledRow, SchedulerOutput
from sharding.targets.peaks import Peaks, known_devices, peaks_of_kind

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=10,
    hidden_size=4,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=4,
    intermediate_size=4,
    max_position_embeddings=100,
)
POOL = PoolConfig("bfloat16", 4)
STEP = SchedulerOutput(1, [ScheduledRow("a", 0, 9, [1], [0], True, 9)], [], 1)
MATRICES = 3 * 4 * 4 + 4 * 4 + 3 * 4 * 4 + 10 * 4  # qkv, output, feed-forward, head
READ = MATRICES * 2 + 10 * 2 * 4 * 2
FLOPS = 2 * MATRICES + 10 * 4 * 4


def meter(bandwidth: float | None = None, flops: float = float("inf")) -> StepMeter:
    rates = None if bandwidth is None else Rates(bandwidth, flops)
    return StepMeter(StepCosts(MODEL, POOL, rates, itemsize=2))


def stats(metered: StepMeter, num_steps: int) -> SchedulerStats:
    found = SchedulerStats(num_steps=num_steps, **metered.totals())
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=SchedulerStats)
    assert again == found
    return found


def test_one_step_after_another() -> None:
    metered = meter(bandwidth=READ)  # the floor of a step is a second
    metered.restart(100.0)
    for start in (100.0, 101.5, 103.0):
        metered.dispatched(STEP, start + 0.25)
        metered.collected(start + 1.5)
    found = stats(metered, 3)
    assert found.step_memory_s == 4.5
    assert found.step_floor_s == pytest.approx(3.0)
    assert (found.step_read_bytes, found.step_write_bytes, found.step_flops) == (3 * READ, 3 * 16, 3 * FLOPS)
    assert (found.num_host_gaps, found.host_gap_s) == (2, 0.5)  # before the first there was no step to follow


def test_the_next_step_may_be_under_way_already() -> None:
    metered = meter(bandwidth=READ)
    metered.restart(0.0)
    metered.dispatched(STEP, 0.1)
    for step in range(1, 5):
        metered.dispatched(STEP, step - 0.5)
        metered.collected(float(step))
    metered.collected(5.0)
    found = stats(metered, 5)
    assert found.step_memory_s == 5.0
    assert (found.num_host_gaps, found.host_gap_s) == (0, 0.0)


def test_time_without_work_is_nobodys() -> None:
    metered = meter(bandwidth=READ)
    for arrival in (0.0, 1000.0):
        metered.restart(arrival)
        metered.dispatched(STEP, arrival + 0.5)
        metered.collected(arrival + 1.25)
    found = stats(metered, 2)
    assert found.step_memory_s == 2.5
    assert found.num_host_gaps == 0


def test_steps_that_fail_count_for_nothing() -> None:
    metered = meter(bandwidth=READ)
    metered.restart(0.0)
    metered.dispatched(STEP, 0.1)
    metered.dispatched(STEP, 0.2)
    metered.failed(50.0)
    metered.dispatched(STEP, 51.0)
    metered.collected(51.5)
    found = stats(metered, 1)
    assert (found.step_memory_s, found.step_read_bytes, found.num_host_gaps) == (1.5, READ, 0)


@pytest.mark.parametrize(
    ("memory_s", "compute_s", "step_s", "says"),
    [
        (3.0, 1.0, 5.0, "memory"),
        (1.0, 3.0, 5.0, "compute"),
        (2.0, 2.0, 8.0, "memory"),
        (3.0, 1.0, 8.1, "host"),
        (1.0, 3.0, 8.1, "host"),
        (0.0, 0.0, 1.0, "unknown"),
    ],
)
def test_verdicts(memory_s: float, compute_s: float, step_s: float, says: str) -> None:
    assert verdict(StepCost(memory_s=memory_s, compute_s=compute_s), step_s) == says


def test_figures_of_a_stretch_are_differences() -> None:
    metered = meter(bandwidth=READ)
    metered.restart(0.0)
    metered.dispatched(STEP, 0.0)
    metered.collected(1.0)
    before = stats(metered, 1)
    for step_s in (1.25, 1.25, 5.0):
        start = metered._since_s
        metered.dispatched(STEP, start + 0.3)
        metered.collected(start + step_s)
    found = figures_between(before, stats(metered, 4))
    assert found is not None
    assert (found.num_steps, found.step_ms) == (3, 2500.0)
    assert found.gbps == pytest.approx(3 * (READ + 16) / 7.5 / 1e9)
    assert found.tflops == pytest.approx(3 * FLOPS / 7.5 / 1e12)
    assert found.floor_fraction == pytest.approx(3 / 7.5)
    assert (found.verdict, found.verdict_share) == ("host", pytest.approx(5 / 7.5))
    assert found.host_gap_us == pytest.approx(0.3e6)
    assert str(found).endswith("40 % of the roofline, bound by host in 67 % of the time")
    assert found.record()["verdict"] == "host"
    assert figures_between(before, before) is None


def test_without_peaks_there_are_rates_and_no_verdict() -> None:
    metered = meter()
    metered.restart(0.0)
    metered.dispatched(STEP, 0.0)
    metered.collected(0.5)
    found = figures_between(SchedulerStats(), stats(metered, 1))
    assert found is not None
    assert (found.floor_fraction, found.verdict, found.verdict_share) == (None, None, None)
    assert found.gbps == pytest.approx((READ + 16) / 0.5 / 1e9)
    assert str(found).endswith("TFLOP/s")


def test_the_log_line_tells_of_its_own_stretch() -> None:
    now = [0.0]
    log, metered = StatsLog(lambda: now[0]), meter(bandwidth=READ)
    metered.restart(0.0)
    metered.dispatched(STEP, 0.0)
    metered.collected(1.0)
    log.count_outputs([EngineOutput("a", new_token_ids=[1])])
    now[0] = 10.0
    first = log.line(stats(metered, 1))
    assert first is not None
    assert ", steps of 1000.00 ms, 4.8e-07 GB/s, 4.64e-10 TFLOP/s, " in first
    assert first.endswith("100 % of the roofline, bound by memory")
    now[0] = 20.0
    last = log.line(stats(metered, 1))
    assert last is not None and "roofline" not in last
    assert log.line(stats(metered, 1)) is None


def test_peaks_are_found_by_the_drivers_name() -> None:
    assert peaks_of_kind("NVIDIA H200") == known_devices()["h200"]
    assert peaks_of_kind("cpu") is None
    assert rates_of(known_devices()["h200"], "bfloat16") == Rates(4.8e12, 989.5e12)
    assert rates_of(known_devices()["h200"], "float32") == Rates(4.8e12, 67e12)
    assert rates_of(Peaks("x", bandwidth=1.0), "bfloat16") is None
