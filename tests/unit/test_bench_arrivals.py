"""Arrivals: the distributions they should have, by their moments over many seeds' draws, and what is refused."""

import math

import numpy as np
import pytest

from jaxserve.bench.arrivals import arrival_times, ramp, steady
from jaxserve.core.errors import ConfigError

COUNT = 20_000


def gaps(rate: float, burstiness: float, seed: int = 0) -> np.ndarray:
    times = arrival_times(steady(COUNT, rate), burstiness, np.random.default_rng(seed))
    return np.diff(times, prepend=0.0)


def test_poisson_gaps_are_exponential() -> None:
    found = np.sort(gaps(8.0, 1.0))
    assert found.mean() == pytest.approx(1 / 8)
    assert found.std() == pytest.approx(1 / 8, rel=0.05)
    # Kolmogorov-Smirnov against 1 - exp(-rate t): the 0.1 % point is 1.95 / sqrt(n).
    expected = 1 - np.exp(-8.0 * found)
    distance = np.abs(expected - np.arange(1, COUNT + 1) / COUNT).max()
    assert distance < 1.95 / math.sqrt(COUNT)


def test_poisson_counts_have_a_variance_equal_to_their_mean() -> None:
    times = arrival_times(steady(COUNT, 8.0), 1.0, np.random.default_rng(1))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.mean() == pytest.approx(8.0, rel=0.02)
    assert counts.var() == pytest.approx(8.0, rel=0.1)


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 2.0, 16.0])
def test_gamma_gaps_have_the_spread_of_their_shape(burstiness: float) -> None:
    found = gaps(4.0, burstiness)
    assert found.mean() == pytest.approx(0.25)
    assert (found.std() / found.mean()) ** 2 == pytest.approx(1 / burstiness, rel=0.1)
    assert np.corrcoef(found[:-1], found[1:])[0, 1] == pytest.approx(0, abs=0.03)


def test_the_rate_offered_is_exact_whatever_the_seed() -> None:
    for seed in range(5):
        times = arrival_times(steady(50, 10.0), 0.5, np.random.default_rng(seed))
        assert times[-1] == pytest.approx(5.0)
        assert (np.diff(times) >= 0).all()


def test_a_seed_is_a_pattern() -> None:
    assert (gaps(8.0, 1.0, seed=3) == gaps(8.0, 1.0, seed=3)).all()
    assert (gaps(8.0, 1.0, seed=3) != gaps(8.0, 1.0, seed=4)).any()


def test_the_ends_of_the_scale() -> None:
    rng = np.random.default_rng(0)
    assert arrival_times(steady(5, math.inf), 1.0, rng).tolist() == [0] * 5
    assert arrival_times(steady(4, 2.0), math.inf, rng) == pytest.approx([0.5, 1, 1.5, 2])


def test_ramps() -> None:
    assert ramp(5, "linear", 1, 9) == pytest.approx([1, 3, 5, 7, 9])
    assert ramp(5, "exponential", 1, 16) == pytest.approx([1, 2, 4, 8, 16])
    assert ramp(1, "linear", 3, 9) == pytest.approx([3])
    found = np.diff(arrival_times(ramp(COUNT, "linear", 1, 10), 1.0, np.random.default_rng(0)))
    assert found[: COUNT // 10].mean() / found[-COUNT // 10 :].mean() == pytest.approx(9.55 / 1.45, rel=0.15)


def test_what_makes_no_sense_is_refused() -> None:
    rng = np.random.default_rng(0)
    for rate in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="request_rate"):
            steady(2, rate)
    for burstiness in (0, -1, math.nan):
        with pytest.raises(ConfigError, match="burstiness"):
            arrival_times(steady(2, 1.0), burstiness, rng)
    with pytest.raises(ConfigError, match="ramp_up_strategy"):
        ramp(2, "sudden", 1, 2)
    with pytest.raises(ConfigError, match="ramp_up_end_rps"):
        ramp(2, "linear", 1, 0)
