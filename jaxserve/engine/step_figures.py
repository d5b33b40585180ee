"""What the roofline meter says of a stretch of time: differences of two snapshots of its counters, as rates."""

from dataclasses import dataclass
from typing import Any

from jaxserve.engine.messages import SchedulerStats

VERDICTS = ("memory", "compute", "host")  # see jaxserve/runner/meter.py


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Means over the steps of a stretch of time.

    step_ms: from one step's results to the next one's. gbps, tflops: bytes moved and operations done at least, over
    that time. floor_fraction: the floor's share of it; verdict: what bound most of it, verdict_share: of the time.
    All three None where the device's peaks are unknown. host_gap_us: how long the device waited for a step, over all
    steps, 0 where the next one was always there.
    """

    num_steps: int
    step_ms: float
    gbps: float
    tflops: float
    floor_fraction: float | None
    verdict: str | None
    verdict_share: float | None
    host_gap_us: float

    def __str__(self) -> str:
        text = f"steps of {self.step_ms:.2f} ms, {self.gbps:.4g} GB/s, {self.tflops:.3g} TFLOP/s"
        if self.floor_fraction is None or self.verdict is None or self.verdict_share is None:
            return text
        share = "" if self.verdict_share > 0.995 else f" in {100 * self.verdict_share:.0f} % of the time"
        return f"{text}, {100 * self.floor_fraction:.0f} % of the roofline, bound by {self.verdict}{share}"

    def record(self) -> dict[str, Any]:
        """For a benchmark's JSON."""
        return {
            "num_steps": self.num_steps,
            "step_ms": round(self.step_ms, 4),
            "step_gbps": float(f"{self.gbps:.5g}"),
            "step_tflops": float(f"{self.tflops:.4g}"),
            "floor_fraction": None if self.floor_fraction is None else round(self.floor_fraction, 4),
            "verdict": self.verdict,
            "verdict_share": None if self.verdict_share is None else round(self.verdict_share, 4),
            "host_gap_us": round(self.host_gap_us, 2),
        }


def figures_between(before: SchedulerStats, after: SchedulerStats) -> StepFigures | None:
    """Of the steps between two snapshots of one engine; None where there were none."""

    def grown(name: str) -> float:
        return getattr(after, name) - getattr(before, name)

    num_steps = after.num_steps - before.num_steps
    seconds = {name: grown(f"step_{name}_s") for name in VERDICTS}
    known_s, floor_s = sum(seconds.values()), grown("step_floor_s")
    step_s = known_s + grown("step_unknown_s")
    if num_steps <= 0 or step_s <= 0:
        return None
    verdict = max(seconds, key=seconds.__getitem__) if known_s > 0 else None
    return StepFigures(
        num_steps=num_steps,
        step_ms=1e3 * step_s / num_steps,
        gbps=(grown("step_read_bytes") + grown("step_write_bytes")) / step_s / 1e9,
        tflops=grown("step_flops") / step_s / 1e12,
        floor_fraction=floor_s / step_s if known_s > 0 else None,
        verdict=verdict,
        verdict_share=None if verdict is None else seconds[verdict] / known_s,
        host_gap_us=1e6 * grown("host_gap_s") / num_steps,
    )
