"""The offline benchmark end to end on a tiny checkpoint: one JSON line with every field that a record owes."""

import json
from pathlib import Path

import pytest

from benchmarks import suite
from jaxserve.bench import offline

REQUIRED = {
    "benchmark", "device", "commit", "versions", "shape", "median_ms", "spread", "ttft_ms", "tpot_ms",
    "output_tokens_per_s", "digest",
}  # fmt: skip


def test_prints_one_record_and_repeats_its_tokens(tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--workload", "offline", "--batch", "2", "--num-requests", "3", "--prompt-len", "9", "--gen-len", "5"]
    options += ["--max-num-batched-tokens", "16"]  # fewer programs to compile
    offline.main(["--model", str(tiny_checkpoint), *options, "--lengths", "lognormal", "--repeat", "2"])
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    found = json.loads(line)
    assert set(found) >= REQUIRED
    assert found["benchmark"] == "offline"
    assert found["engine"] == "jaxserve"
    assert found["dtype"] == "float32"
    assert found["repeats"] == 2
    assert found["shape"]["num_requests"] == 3
    assert found["num_compilations_after_warmup"] == 0
    assert found["output_tokens_per_s"] > 0
    assert 0 < found["ttft_ms"] <= found["median_ms"]


def test_more_cores_than_there_are_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(SystemExit, match="--threads 4096"):
        offline.main(["--model", str(tiny_checkpoint), "--threads", "4096"])


def test_a_suite_shares_one_engine(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = "latency --batch-size 2 --input-len 9 --output-len 5 --num-iters-warmup 0 --num-iters 2"
    names = {"b2": batch, "all": "throughput --num-prompts 3 --input-len 9 --output-len 5"}
    monkeypatch.setattr(suite, "SUITE", names)
    engine = ["--model", str(tiny_checkpoint), "--max-num-seqs", "2", "--max-num-batched-tokens", "16"]
    suite.main(["--out", str(tmp_path), "--commit", "0123abc", "--", *engine])
    found = {path.stem.rpartition("-")[2]: json.loads(path.read_text()) for path in tmp_path.iterdir()}
    assert set(found) == set(names)
    assert {record["commit"] for record in found.values()} == {"0123abc"}
    assert found["b2"]["shape"]["batch_size"] == 2 and len(found["b2"]["latencies"]) == 2
    assert found["all"]["total_num_output_tokens"] == 15
    assert capsys.readouterr().out.count("the engine is there") == 1
