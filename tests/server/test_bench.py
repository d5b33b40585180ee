"""`jaxserve bench` end to end on the demo model: a real server under load, the engine offline, fresh processes."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import ROOT, ServerProcess, metric

from benchmarks.performance_sections import TABLES
from benchmarks.performance_tables import sections
from jaxserve.cli import main

RECORD = {"benchmark", "date", "commit", "versions", "command", "shape", "model_id"}
# The same programs for the server and for the offline engine: what the first one compiles is there for the others.
ENGINE = {"max_num_seqs": 2, "max_num_batched_tokens": 8, "max_model_len": 64, "page_size": 16}


@pytest.fixture(scope="module")
def demo_args(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    cache = tmp_path_factory.mktemp("compiled")
    return {**ENGINE, "kv_cache_memory_bytes": 2**21, "compilation_cache_dir": str(cache)}


@pytest.fixture(scope="module")
def demo(demo_args: dict[str, Any]) -> Iterator[ServerProcess]:
    process = ServerProcess(demo_args)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def engine_flags(demo: ServerProcess, demo_args: dict[str, Any]) -> list[str]:
    return [word for name, value in demo_args.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def on(server: ServerProcess, *argv: str, code: int = 0) -> None:
    assert main(["bench", "serve", "--base-url", server.url, "--disable-tqdm", *argv]) == code


def record(path: Path, *more: str) -> dict[str, Any]:
    found = json.loads(path.read_text())
    assert set(found) >= RECORD | set(more)
    section, *_ = sections(TABLES, [found | {"file": "benchmarks/cpu/record.json"}])  # each is shown in the docs
    assert f"`{found['command']}`" in section and f"`{found['commit']}`" in section
    return found


def test_serve_counts_what_the_server_counts(
    demo: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["--num-prompts", "12", "--random-input-len", "9", "--random-output-len", "6"]
    load = ["--request-rate", "100", "--burstiness", "0.5", "--max-concurrency", "4", "--ignore-eos", "--seed", "3"]
    reports = ["--goodput", "ttft:60000", "tpot:60000", "--metric-percentiles", "50,99", "--save-detailed"]
    where = ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json", "--metadata", "gpu=no"]
    on(demo, *sizes, *load, *reports, *where)
    found = record(tmp_path / "result.json", "p50_ttft_ms", "p99_tpot_ms", "mean_itl_ms", "median_e2el_ms")
    assert (found["completed"], found["failed"], found["errors"]) == (12, 0, {})
    assert (found["total_input_tokens"], found["total_output_tokens"]) == (12 * 9, 12 * 6)
    assert found["model_id"] == "jaxserve-demo"
    assert found["request_goodput"] == found["request_throughput"] > 0
    assert found["gpu"] == "no"
    assert found["num_steps"] >= 6 and found["step_ms"] > 0 and found["step_gbps"] > 0  # the server's own counters
    assert found["verdict"] is None  # of a CPU nobody knows the peaks
    assert 0 < found["client_cpu_share"] < 4
    assert found["goodput_limits_ms"] == {"ttft": 60000, "tpot": 60000}
    assert found["max_concurrent_requests"] <= 4
    assert found["output_lens"] == [6] * 12
    assert all(len(itls) <= 5 for itls in found["itls"])  # a chunk is a token, or some (all) where we are slow to read
    assert any(found["itls"])
    assert 0 < found["mean_ttft_ms"] < found["mean_e2el_ms"]
    shown = capsys.readouterr().out
    assert "Successful requests:                     12\n" in shown
    assert "Total generated tokens:                  72\n" in shown
    assert f"P99 TTFT (ms):                           {found['p99_ttft_ms']:.2f}\n" in shown


def test_serve_chat_and_every_dataset(demo: ServerProcess, tmp_path: Path) -> None:
    sizes = ["--num-prompts", "3", "--input-len", "5", "--output-len", "3"]
    on(demo, *sizes, "--backend", "openai-chat", "--output-json", str(tmp_path / "chat.json"))
    chat = record(tmp_path / "chat.json")
    assert chat["completed"] == 3
    assert chat["total_input_tokens"] > 3 * 5  # the template's tokens are the server's to count
    assert chat["request_rate"] == "inf"
    for dataset in ("sharegpt", "prefix_repetition", "long"):
        path = tmp_path / "all.json"
        more = ["--prefix-repetition-prefix-len", "20"]
        on(demo, *sizes, *more, "--dataset-name", dataset, "--output-json", str(path), "--append-result")
    lines = [json.loads(line) for line in (tmp_path / "all.json").read_text().splitlines()]
    assert [one["dataset_name"] for one in lines] == ["sharegpt", "prefix_repetition", "long"]
    assert [one["completed"] for one in lines] == [3] * 3


def test_long_requests_are_reported_apart(
    demo: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, load = tmp_path / "mixed.json", ["--request-rate", "60", "--ignore-eos", "--goodput", "ttft:60000"]
    on(demo, "--dataset-name", "mixed", "--num-prompts", "20", *load, "--output-json", str(path))
    found = record(path)
    assert found["completed"] == 20
    shape, kinds = found["shape"], found["kinds"]
    assert (kinds["short"]["completed"], kinds["long"]["completed"]) == (18, 2)
    # 8,192 + 64 tokens do not fit into 64: all lengths shrink by the same factor.
    assert (shape["long_input_max"], shape["long_output_max"]) == (63, 1)
    assert shape["short_input_max"] <= 8
    assert kinds["long"]["total_input_tokens"] == 2 * 63
    assert kinds["long"]["total_output_tokens"] + kinds["short"]["total_output_tokens"] == found["total_output_tokens"]
    assert kinds["short"]["request_goodput"] == pytest.approx(18 / found["duration"])
    assert kinds["short"]["p99_itl_ms"] is not None and kinds["long"]["p99_itl_ms"] is None
    shown = capsys.readouterr().out
    assert "The short requests alone" in shown and "The long requests alone" in shown
    assert f"P99 ITL (ms):                            {kinds['short']['p99_itl_ms']:.2f}\n" in shown.split("short")[1]


def test_a_server_that_dies_is_counted_request_by_request(
    demo: ServerProcess, demo_args: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    doomed = ServerProcess(demo_args).wait_ready()

    def kill() -> None:
        while metric(doomed.metrics(), "jaxserve:requests_total", status="success") < 5:
            time.sleep(0.01)
        doomed.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        sizes = ["--num-prompts", "300", "--input-len", "9", "--output-len", "20", "--ignore-eos"]
        on(doomed, *sizes, "--max-concurrency", "3", "--output-json", str(tmp_path / "died.json"))
    finally:
        killer.join()
        doomed.stop()
    found = record(tmp_path / "died.json")
    assert found["completed"] >= 1 and found["failed"] >= 1
    assert found["completed"] + found["failed"] == 300
    assert sum(found["errors"].values()) == found["failed"]
    assert any("ConnectError" in error for error in found["errors"])
    shown = capsys.readouterr()
    assert f"Failed requests:                         {found['failed']}\n" in shown.out
    assert "x ConnectError" in shown.err


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["--model", "nope"], 2, "'nope' is not served"),
        (["--input-len", "900"], 2, "takes 64"),
        (["--backend", "tgi"], 2, "one of openai, openai-chat"),
        (["--goodput", "itl:3"], 2, "ttft, tpot, e2el"),
        (["--request-rate", "0"], 2, "request_rate is 0"),
        (["--extra-body", '{"temperature": -1}', "--input-len", "4", "--output-len", "2"], 1, "first trial request"),
        (["--output-json", "/proc/no/such"], 2, "cannot be written"),
        (["--endpoint", "/nowhere", "--input-len", "4", "--output-len", "2"], 1, "HTTP 404"),
    ],
)
def test_serve_says_what_is_wrong(
    demo: ServerProcess, capsys: pytest.CaptureFixture[str], argv: list[str], code: int, says: str
) -> None:
    on(demo, *argv, code=code)
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.strip().splitlines()[-1]
    assert last.startswith("jaxserve: ") and says in last


def test_serve_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "serve", "--base-url", "http://127.0.0.1:9"]) == 1
    assert "no server answers at http://127.0.0.1:9/v1/models" in capsys.readouterr().err


def test_latency(engine_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "latency.json"
    sizes = [
        "--input-len",
        "7",
        "--output-len",
        "5",
        "--batch-size",
        "2",
        "--num-iters-warmup",
        "1",
        "--num-iters",
        "4",
    ]
    assert main(["bench", "latency", *sizes, *engine_flags, "--output-json", str(path)]) == 0
    found = record(path, "device", "std_latency", "median_ms", "spread")
    assert len(found["latencies"]) == 4
    assert found["avg_latency"] == pytest.approx(sum(found["latencies"]) / 4, abs=1e-5)
    assert set(found["percentiles"]) == {"10", "25", "50", "75", "90", "99"}
    assert found["num_compilations_after_warmup"] == 0
    assert found["output_tokens_per_s"] == pytest.approx(10e3 / found["median_ms"], rel=0.01)
    assert 0 < found["ttft_ms"] < found["median_ms"] and found["tpot_ms"] > 0
    assert 4 * 6 <= found["num_steps"] <= 4 * 8  # two prompts of 7 tokens in steps of 8, then four tokens each
    assert found["step_ms"] == pytest.approx(found["median_ms"] / 6, rel=0.5)
    assert 0 <= found["host_gap_us"] < 1e3 * found["step_ms"]
    assert "itl_slope_ms_per_token" not in found
    shown = capsys.readouterr().out
    assert "Avg latency: " in shown and "Steps: steps of " in shown


def test_latency_against_peaks_and_its_slope(
    engine_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "latency.json"
    sizes = ["--input-len", "4", "--output-len", "40", "--batch-size", "1", "--num-iters-warmup", "1"]
    more = ["--num-iters", "2", "--itl-slope", "--device-peaks", "bandwidth=1e3,tflops=1"]
    assert main(["bench", "latency", *sizes, *more, *engine_flags, "--output-json", str(path)]) == 0
    found = record(path, "itl_slope_ms_per_token", "itl_intercept_ms")
    assert (found["verdict"], found["verdict_share"]) == ("memory", 1)
    assert found["floor_fraction"] > 1  # no real device is that slow
    contexts = [context for context, _ in found["itl_points"]]
    assert len(contexts) == 19 and 4 < contexts[0] < 8 and 41 < contexts[-1] < 44
    assert all(ms >= 0 for _, ms in found["itl_points"])
    assert "ms a token of context" in capsys.readouterr().out
    assert main(["bench", "latency", "--output-len", "8", "--itl-slope"]) == 2
    assert "output_len of at least 9" in capsys.readouterr().err


def test_throughput(engine_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "throughput.json"
    sizes = ["--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", "32", "--num-prompts", "8"]
    sizes += ["--prefix-repetition-num-prefixes", "2", "--input-len", "4", "--output-len", "3", "--num-iters", "2"]
    argv = ["bench", "throughput", *sizes, *engine_flags, "--disable-tqdm", "--output-json", str(path)]
    assert main(argv) == 0
    found = record(path, "device", "prefix_cache_hits", "spread")
    assert (found["num_requests"], found["repeats"]) == (8, 2)
    assert (found["total_num_tokens"], found["total_num_output_tokens"]) == (8 * 39, 24)
    assert found["requests_per_second"] == pytest.approx(8 / found["elapsed_time"])
    assert found["tokens_per_second"] == pytest.approx(8 * 39 / found["elapsed_time"])
    assert found["prefix_cache_hits"] > 0
    assert found["elapsed_time"] == pytest.approx(found["median_ms"] / 1000, rel=1e-3)
    assert found["best_output_tokens_per_s"] >= 24 / found["elapsed_time"] * (1 - 1e-3)  # the median is of two passes
    assert found["num_steps"] > 2 * 3 and found["step_ms"] > 0
    assert "Throughput: " in capsys.readouterr().out


def test_throughput_names_a_request_that_does_not_fit(
    engine_flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "throughput", *engine_flags]) == 2
    assert "max_model_len is 64" in capsys.readouterr().err


def test_startup(engine_flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "startup.json"
    times = ["--num-iters-cold", "1", "--num-iters-warmup", "0", "--num-iters-warm", "1"]
    assert main(["bench", "startup", *times, *engine_flags, "--output-json", str(path)]) == 0
    found = record(path, "device")
    for kind in ("cold", "warm"):
        phases = [found[f"avg_{kind}_{phase}_time"] for phase in ("import", "startup", "first_token")]
        total = found[f"avg_{kind}_total_time"]
        inside = [found[f"avg_{kind}_{phase}_time"] for phase in ("config", "weights", "compilation", "capture")]
        assert 0 < sum(inside) <= found[f"avg_{kind}_startup_time"]
        assert all(seconds > 0 for seconds in phases)
        assert total == pytest.approx(sum(phases), abs=0.01)
        assert len(found[f"{kind}_startup_times"]) == 1
    assert found["avg_warm_compilation_time"] < found["avg_cold_compilation_time"]
    assert "1 cold" in capsys.readouterr().out


def test_startup_from_a_bundle(engine_flags: list[str], tmp_path: Path) -> None:
    bundle, path = tmp_path / "a.bundle", tmp_path / "startup.json"
    # In a process of its own, as it switches JAX's cache off.
    command = [sys.executable, "-m", "jaxserve.cli", "compile", "-o", str(bundle), *engine_flags]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    times = ["--num-iters-cold", "1", "--num-iters-warm", "0"]
    argv = ["bench", "startup", *times, *engine_flags, "--bundle", str(bundle), "--output-json", str(path)]
    assert main(argv) == 0
    found = record(path, "device")
    assert found["num_compilations"]["cold"] == [0] and found["bundle"] == str(bundle)


def test_startup_that_fails_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", "startup", "--model", str(tmp_path), "--num-iters-cold", "1", "--num-iters-warm", "0"]
    assert main(argv) == 1
    assert "config.json" in capsys.readouterr().err
