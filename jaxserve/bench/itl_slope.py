"""How the gap between two tokens grows with the context: slope and intercept over one long generation."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxserve.bench.workload import WorkItem
from jaxserve.core.params import RequestOutputKind, SamplingParams
from jaxserve.llm import LLM

MIN_TOKENS = 9  # of an output: eight gaps for four points
_MAX_POINTS = 64


@dataclass(frozen=True, slots=True)
class ItlSlope:
    """ITL = intercept_ms + slope_ms * context length. A token of context of the whole batch: rows times slope.

    points: (mean context length in tokens, median ITL in ms) of each block of gaps that follow one another.
    """

    slope_ms: float
    intercept_ms: float
    points: list[tuple[float, float]]

    def __str__(self) -> str:
        return f"ITL: {self.intercept_ms:.4f} ms + {self.slope_ms:.3e} ms a token of context"

    def record(self) -> dict[str, Any]:
        """For a benchmark's JSON."""
        return {
            "itl_slope_ms_per_token": float(f"{self.slope_ms:.4e}"),
            "itl_intercept_ms": round(self.intercept_ms, 4),
            "itl_points": [(round(context, 1), round(ms, 4)) for context, ms in self.points],
        }


def fit(first_context_len: int, seconds: Sequence[float]) -> ItlSlope:
    """A least-squares line through medians.

    seconds: when each token after the prompt came, the first one at first_context_len tokens of context. Medians of
    blocks, as one interrupted gap would weigh more than a thousand others.
    """
    gaps_ms = 1e3 * np.diff(np.asarray(seconds))
    context_lens = first_context_len + np.arange(1, len(seconds))
    num_points = min(_MAX_POINTS, len(gaps_ms) // 2)
    blocks = np.array_split(np.arange(len(gaps_ms)), num_points)
    points = [(float(context_lens[block].mean()), float(np.median(gaps_ms[block]))) for block in blocks]
    x, y = np.array(points).T
    slope = float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
    return ItlSlope(slope, float(y.mean() - slope * x.mean()), points)


def measure(llm: LLM, items: list[WorkItem]) -> ItlSlope:
    """Complete equal requests together once more and watch the first one's tokens come."""
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=item.num_output_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        for item in items
    ]
    seconds: list[float] = []
    for output in llm.stream([{"prompt_token_ids": item.prompt_token_ids} for item in items], params):
        if output.request_id == "0":
            now_s = time.perf_counter()
            seconds += [now_s] * len(output.outputs[0].token_ids)
    return fit(len(items[0].prompt_token_ids), seconds)
