"""What a serving benchmark reports, from what was seen of each request. Pure: times in, numbers out.

Definitions (those of vLLM's bench):
TTFT: from sending to the first chunk. E2EL: from sending to the last chunk.
TPOT: (E2EL - TTFT) / (output tokens - 1); requests of one token are left out, and count as 0 for goodput.
ITL: each gap between two chunks of a request, all requests together.
Goodput: requests a second that meet every limit. Throughputs: what finished requests brought, over the wall time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxserve.bench.flags import METRICS
from jaxserve.core.errors import ConfigError

GOODPUT_METRICS = ("ttft", "tpot", "e2el")


@dataclass
class Timeline:
    """One request as its client saw it. Times in seconds of one clock.

    sent_s: the request left; lag_s: how much later than planned that was. chunk_s: each chunk with output arrived.
    num_output_tokens: as the server counts them, else the chunks. error: why it failed, None where it did not.
    """

    sent_s: float
    chunk_s: list[float] = field(default_factory=list[float])
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None
    lag_s: float = 0.0

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0] - self.sent_s

    @property
    def e2el_s(self) -> float:
        return self.chunk_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        """None for an output of one token, which has no token after the first."""
        if self.num_output_tokens < 2:
            return None
        return (self.e2el_s - self.ttft_s) / (self.num_output_tokens - 1)

    @property
    def itl_s(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.chunk_s, self.chunk_s[1:], strict=False)]

    def meets(self, limits_ms: Mapping[str, float]) -> bool:
        """Whether it stays within every limit, such as {"ttft": 1000, "tpot": 50}."""
        seen = {"ttft": self.ttft_s, "tpot": self.tpot_s or 0.0, "e2el": self.e2el_s}
        return all(1e3 * seen[name] <= limit for name, limit in limits_ms.items())


def read_goodput(limits: Sequence[str]) -> dict[str, float]:
    """Limits in ms by metric, from texts such as "ttft:1000". Raises ConfigError."""
    found: dict[str, float] = {}
    for text in limits:
        name, _, value = text.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if name not in GOODPUT_METRICS or not limit >= 0:
            raise ConfigError(
                f"goodput {text!r}: it must be NAME:MS, with a NAME of {', '.join(GOODPUT_METRICS)}, such as ttft:1000"
            )
        found[name] = limit
    return found


def read_percentiles(text: str) -> list[float]:
    """Numbers of a list such as "50,90,99". Raises ConfigError."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [-1.0]
    if not all(0 <= one <= 100 for one in found):
        raise ConfigError(f"metric_percentiles {text!r}: it must be numbers from 0 to 100 with commas between them")
    return found


def read_metrics(text: str) -> list[str]:
    """Names of a list such as "ttft,tpot". Raises ConfigError."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if wrong := set(found) - set(METRICS):
        raise ConfigError(f"percentile_metrics {text!r}: {', '.join(sorted(wrong))} is none of {', '.join(METRICS)}")
    return found


def distribution(name: str, seconds: Sequence[float], percentiles: Sequence[float]) -> dict[str, float | None]:
    """mean_NAME_ms, median_, std_ and pXX_ of these times; None where there are none."""
    ms = 1e3 * np.asarray(seconds, float)
    keys = {"mean": np.mean, "median": np.median, "std": np.std}
    found = {f"{key}_{name}_ms": float(of(ms)) if len(ms) else None for key, of in keys.items()}
    for percentile in percentiles:
        found[f"p{percentile:g}_{name}_ms"] = float(np.percentile(ms, percentile)) if len(ms) else None
    return found


def summarise(
    timelines: Sequence[Timeline],
    duration_s: float,
    percentiles: Sequence[float] = (99,),
    goodput_ms: Mapping[str, float] | None = None,
    names: Sequence[str] = METRICS,
) -> dict[str, float | None]:
    """The figures under the names that vLLM's bench gives them. duration_s: wall time of the whole run.

    Failed requests are counted and bring nothing else. request_goodput is None without limits.
    """
    done = [one for one in timelines if one.error is None]
    num_prompt_tokens = sum(one.num_prompt_tokens for one in done)
    num_output_tokens = sum(one.num_output_tokens for one in done)
    times: dict[str, list[float]] = {
        "ttft": [one.ttft_s for one in done],
        "tpot": [tpot for one in done if (tpot := one.tpot_s) is not None],
        "itl": [gap for one in done for gap in one.itl_s],
        "e2el": [one.e2el_s for one in done],
    }
    found: dict[str, float | None] = {
        "duration": duration_s,
        "completed": len(done),
        "failed": len(timelines) - len(done),
        "total_input_tokens": num_prompt_tokens,
        "total_output_tokens": num_output_tokens,
        "request_throughput": len(done) / duration_s,
        "request_goodput": sum(one.meets(goodput_ms) for one in done) / duration_s if goodput_ms else None,
        "output_throughput": num_output_tokens / duration_s,
        "total_token_throughput": (num_prompt_tokens + num_output_tokens) / duration_s,
        "max_output_tokens_per_s": peak_tokens_per_s(done),
        "max_concurrent_requests": peak_concurrency(done),
    }
    for name in names:
        found |= distribution(name, times[name], percentiles)
    return found


def peak_tokens_per_s(done: Sequence[Timeline]) -> float:
    """Most output tokens in one second, of seconds counted from the first sending.

    A request's chunks share its tokens evenly, as a chunk does not say how many it holds.
    """
    if not done:
        return 0.0
    start_s = min(one.sent_s for one in done)
    seconds = np.concatenate([np.asarray(one.chunk_s) - start_s for one in done]).astype(int)
    tokens = np.concatenate([np.full(len(one.chunk_s), one.num_output_tokens / len(one.chunk_s)) for one in done])
    return float(np.bincount(seconds, tokens).max())


def peak_concurrency(done: Sequence[Timeline]) -> int:
    """Most requests under way at one instant; one that ends as another begins is not under way with it."""
    events = sorted([(one.sent_s, 1) for one in done] + [(one.chunk_s[-1], -1) for one in done])
    together = np.cumsum([change for _, change in events])
    return int(together.max()) if len(together) else 0
