"""Serving metrics on timelines made by hand: every figure can be worked out on paper."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxserve.bench import report
from jaxserve.bench.metrics import (
    Timeline,
    peak_concurrency,
    peak_tokens_per_s,
    read_goodput,
    read_metrics,
    read_percentiles,
    summarise,
)
from jaxserve.core.errors import ConfigError

# Sent at 10 s, tokens at 10.5, 10.6, 10.9: TTFT 500, E2EL 900, TPOT 200, gaps 100 and 300 ms.
THREE = Timeline(10.0, [10.5, 10.6, 10.9], num_prompt_tokens=7, num_output_tokens=3)
# One token: TTFT and E2EL 200 ms, no TPOT, no gap.
ONE = Timeline(10.2, [10.4], num_prompt_tokens=5, num_output_tokens=1)
# Five tokens in two chunks: TTFT 100, E2EL 900, TPOT (900 - 100) / 4 = 200, one gap of 800 ms.
BUNDLED = Timeline(11.0, [11.1, 11.9], num_prompt_tokens=1, num_output_tokens=5)
FAILED = Timeline(10.0, [10.1], num_prompt_tokens=100, num_output_tokens=1, error="HTTP 503: full")
ALL = [THREE, ONE, BUNDLED, FAILED]


def test_one_request() -> None:
    assert THREE.ttft_s == pytest.approx(0.5)
    assert THREE.e2el_s == pytest.approx(0.9)
    assert THREE.tpot_s == pytest.approx(0.2)
    assert THREE.itl_s == pytest.approx([0.1, 0.3])
    assert BUNDLED.tpot_s == pytest.approx(0.2)
    assert BUNDLED.itl_s == pytest.approx([0.8])
    assert ONE.tpot_s is None
    assert ONE.itl_s == []


def test_the_first_token_is_no_part_of_tpot() -> None:
    late = Timeline(0.0, [100.0, 100.1, 100.2], num_output_tokens=3)
    assert late.tpot_s == pytest.approx(0.1)


def test_summary() -> None:
    found = summarise(ALL, duration_s=2.0, percentiles=(50, 99.9))
    assert (found["completed"], found["failed"]) == (3, 1)
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (13, 9)
    assert found["request_throughput"] == 1.5
    assert found["output_throughput"] == 4.5
    assert found["total_token_throughput"] == 11.0
    assert found["request_goodput"] is None
    assert found["mean_ttft_ms"] == pytest.approx(800 / 3)
    assert found["median_ttft_ms"] == found["p50_ttft_ms"] == pytest.approx(200)
    assert found["mean_tpot_ms"] == pytest.approx(200)  # without the request of one token
    assert found["std_tpot_ms"] == pytest.approx(0, abs=1e-6)
    assert found["mean_itl_ms"] == pytest.approx(400)  # 100, 300 and 800: gaps, not means of requests
    assert found["median_itl_ms"] == pytest.approx(300)
    assert found["p99.9_e2el_ms"] == pytest.approx(900)
    assert found["mean_e2el_ms"] == pytest.approx(2000 / 3)


def test_only_the_metrics_asked_for() -> None:
    found = summarise(ALL, 2.0, (90,), names=("itl",))
    assert "p90_itl_ms" in found
    assert not any("ttft" in key or "tpot" in key or "e2el" in key for key in found)


@pytest.mark.parametrize(
    ("limits", "num_good"),
    [
        ({"ttft": 500.001}, 3),
        ({"ttft": 499}, 2),
        ({"tpot": 100}, 1),  # a request of one token has a TPOT of 0
        ({"tpot": 250, "ttft": 150}, 1),
        ({"e2el": 850}, 1),
        ({"e2el": 1, "ttft": 1000}, 0),
    ],
)
def test_goodput_counts_requests_that_meet_all_limits(limits: dict[str, float], num_good: int) -> None:
    assert summarise(ALL, 2.0, goodput_ms=limits)["request_goodput"] == num_good / 2


def test_peaks() -> None:
    assert peak_concurrency(ALL[:3]) == 2
    assert peak_concurrency([Timeline(0, [1.0]), Timeline(1.0, [2.0])]) == 1  # one ends as the other begins
    # From 10 s on: the first second holds three tokens and one, the next five, shared by two chunks.
    assert peak_tokens_per_s(ALL[:3]) == pytest.approx(5)
    assert peak_tokens_per_s([THREE, ONE]) == pytest.approx(4)
    assert (peak_concurrency([]), peak_tokens_per_s([])) == (0, 0.0)


def test_nothing_but_failures_is_no_zero_latency() -> None:
    found = summarise([FAILED], 2.0, goodput_ms={"ttft": 1})
    assert (found["completed"], found["failed"], found["request_goodput"]) == (0, 1, 0)
    assert found["mean_ttft_ms"] is found["p99_itl_ms"] is None
    table = report.serving_table(found | {"max_concurrency": None, "request_rate": "inf"}, ("ttft",))
    assert "Failed requests:                         1" in table
    assert "Mean TTFT (ms):                          -" in table


gaps = st.lists(st.floats(0, 10), min_size=1, max_size=20)


@given(st.floats(0, 100), gaps)
def test_tpot_is_the_mean_gap_where_a_chunk_is_a_token(sent_s: float, gaps: list[float]) -> None:
    chunk_s = [sent_s + sum(gaps[: index + 1]) for index in range(len(gaps))]
    one = Timeline(sent_s, chunk_s, num_output_tokens=len(chunk_s))
    assert one.e2el_s == pytest.approx(one.ttft_s + sum(one.itl_s), abs=1e-9)
    if one.tpot_s is not None:
        assert one.tpot_s == pytest.approx(sum(one.itl_s) / len(one.itl_s), abs=1e-9)


def test_the_table_has_the_lines_that_scripts_look_for() -> None:
    found = summarise(ALL, 2.0, (99,), {"ttft": 1000})
    table = report.serving_table(found | {"max_concurrency": 4, "request_rate": 8.0}, ("ttft", "tpot", "itl", "e2el"))
    for line in (
        "Successful requests:                     3",
        "Failed requests:                         1",
        "Maximum request concurrency:             4",
        "Request rate configured (RPS):           8.00",
        "Request throughput (req/s):              1.50",
        "Request goodput (req/s):                 1.50",
        "Output token throughput (tok/s):         4.50",
        "Mean TTFT (ms):                          266.67",
        "Median TPOT (ms):                        200.00",
        "P99 ITL (ms):",
        "Mean E2EL (ms):                          666.67",
    ):
        assert line in table


def test_options_are_read_or_refused_by_name() -> None:
    assert read_goodput(["ttft:1000", "tpot:50.5"]) == {"ttft": 1000, "tpot": 50.5}
    assert read_percentiles("50, 99.9") == [50, 99.9]
    assert read_metrics("ttft, itl") == ["ttft", "itl"]
    for bad in ("ttft", "itl:5", "ttft:many", "ttft:-1", "ttft:nan"):
        with pytest.raises(ConfigError, match=bad):
            read_goodput([bad])
    for bad in ("101", "a", "-1", "nan"):
        with pytest.raises(ConfigError, match="metric_percentiles"):
            read_percentiles(bad)
    with pytest.raises(ConfigError, match="ttlt is none of"):
        read_metrics("ttlt")
    assert read_goodput(["e2el:inf"]) == {"e2el": math.inf}


def test_secrets_stay_out_of_records() -> None:
    argv = ["--api-key", "sesame", "--header", "a=sesame", "b=sesame", "--port", "1", "--api-key=sesame"]
    shown = report.base("serve", argv)["command"]
    assert "sesame" not in shown
    assert "--port 1" in shown
