"""When requests are sent: Poisson and gamma arrivals, at a fixed or a growing rate."""

import math

import numpy as np

from jaxserve.core.errors import ConfigError

RAMPS = ("linear", "exponential")


def steady(count: int, rate: float) -> np.ndarray:
    """The same rate for each request, requests/s; inf for all at once."""
    if not rate > 0:
        raise ConfigError(f"request_rate is {rate}, it must be above 0 (inf: all at once)")
    return np.full(count, float(rate))


def ramp(count: int, strategy: str, start: float, end: float) -> np.ndarray:
    """A rate for each request, requests/s, from start at the first to end at the last."""
    if strategy not in RAMPS:
        raise ConfigError(f"ramp_up_strategy is {strategy!r}, it must be one of {', '.join(RAMPS)}")
    if not (0 < start < math.inf and 0 < end < math.inf):
        raise ConfigError(f"ramp_up_start_rps is {start} and ramp_up_end_rps {end}: both must be finite and above 0")
    progress = np.arange(count) / max(count - 1, 1)
    return start + (end - start) * progress if strategy == "linear" else start * (end / start) ** progress


def arrival_times(rates: np.ndarray, burstiness: float, rng: np.random.Generator) -> np.ndarray:
    """Seconds from the start at which each request is sent.

    rates: of each request, requests/s. burstiness: shape of the gamma distribution of the gaps, whose squared
    coefficient of variation is its inverse: 1 is a Poisson process, inf sends evenly.
    At a steady rate the times are stretched so that the last one falls on count / rate, as vLLM's bench does:
    seeds then differ in the pattern only, not in the rate offered.
    """
    if not burstiness > 0:
        raise ConfigError(f"burstiness is {burstiness}, it must be above 0")
    if np.isinf(rates).any():
        return np.zeros(len(rates))
    gaps = 1 / rates if math.isinf(burstiness) else rng.gamma(burstiness, 1 / (rates * burstiness))
    times = np.cumsum(gaps)
    is_steady = bool((rates == rates[0]).all())
    return times * (len(rates) / rates[0] / times[-1]) if is_steady and times[-1] > 0 else times
