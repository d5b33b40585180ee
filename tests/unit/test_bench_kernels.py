"""The kernel benchmark, on the implementation that runs anywhere."""

import json
from pathlib import Path

import pytest

from jaxserve import cli
from jaxserve.bench import kernels, prefill_kernels

SMALL = ["--heads", "4", "--kv-heads", "2", "--head-dim", "16", "--page-size", "8", "--layers", "2"]


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_REPEATS", 2)
    monkeypatch.setattr(kernels, "_RUNS", 2)
    monkeypatch.setattr(kernels, "_CPU_MATRIX_SIDE", 128)


def test_a_record_a_case_with_what_the_figures_rest_on(tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    cases = ["--case", "3x40r", "--case", "1x9", "--implementation", "xla"]
    kernels.main([*SMALL, *cases, "--commit", "abc", "--out", str(out)])
    first, second = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["case"], second["case"]) == ("3x40r", "1x9")
    for record in (first, second):
        assert record["commit"] == "abc" and record["implementation"] == "xla" and record["device"]
        assert record["max_error"] <= 2e-2 and record["median_ms"] > 0
        assert record["bandwidth_fraction"] == pytest.approx(record["gbps"] / record["copy_gbps"], abs=0.05)
    read = 9 * 2 * 2 * 16 * 2  # keys and values of nine tokens and two heads of sixteen, two bytes each
    assert second["gbps"] == pytest.approx(read / second["median_ms"] / 1e6, abs=0.06)


def test_the_command_line_says_why_a_kernel_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", "kernels", *SMALL, "--case", "1x9"]) == 0  # xla: this is a CPU
    assert '"implementation": "xla"' in capsys.readouterr().out
    monkeypatch.setattr(kernels, "ragged_paged_attention", lambda q, *_, **__: 2 * q)
    assert cli.main(["bench", "kernels", *SMALL, "--case", "2x16"]) == 1
    assert "off by" in capsys.readouterr().err


@pytest.mark.parametrize("pool_dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_a_pool_of_8_bits_is_counted_by_its_bytes(pool_dtype: str, tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    cases = ["--case", "1x9", "--case", "8@16", "--implementation", "xla", "--pool-dtype", pool_dtype]
    kernels.main([*SMALL, *cases, "--out", str(out)])
    decode, chunk = (json.loads(line) for line in out.read_text().splitlines())
    assert decode["pool_dtype"] == chunk["pool_dtype"] == pool_dtype
    read = 9 * 2 * 2 * 16
    assert decode["gbps"] == pytest.approx(read / decode["median_ms"] / 1e6, abs=0.06)
    assert kernels.make_inputs("1x9", kernels.parser().parse_args([*SMALL, *cases]))[1][0].dtype == pool_dtype


def test_ragged_lengths_stay_between_half_and_whole() -> None:
    args = kernels.parser().parse_args(SMALL)
    lens = kernels.make_inputs("20x64r", args)[3]
    assert 32 <= int(lens.min()) < int(lens.max()) <= 64


def test_a_wrong_kernel_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "ragged_paged_attention", lambda q, *_, **__: 2 * q)
    with pytest.raises(SystemExit, match="off by"):
        kernels.main([*SMALL, "--case", "2x16", "--implementation", "xla"])


def test_a_prompt_chunk_is_counted_by_the_keys_its_queries_see(tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    kernels.main([*SMALL, "--case", "40@100", "--implementation", "xla", "--out", str(out)])
    record = json.loads(out.read_text())
    seen = sum(range(61, 101))
    flops = 4 * seen * 4 * 16  # a multiply-add for the score and one for the value, four heads of sixteen
    assert record["tflops"] == pytest.approx(flops / record["median_ms"] / 1e9, abs=0.06)
    assert record["max_error"] <= 2e-2 and record["case"] == "40@100"


def test_a_wrong_prompt_chunk_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill_kernels, "ragged_paged_attention", lambda q, *_, **__: 2 * q)
    with pytest.raises(SystemExit, match="off by"):
        kernels.main([*SMALL, "--case", "8@16", "--implementation", "xla"])


def test_sampling_is_measured_beside_the_same_copy(tmp_path: Path) -> None:
    out = tmp_path / "records.json"
    kernels.main([*SMALL, "--kernel", "sampling", "--case", "2x300", "--implementation", "xla", "--out", str(out)])
    record = json.loads(out.read_text())
    assert (record["benchmark"], record["dtype"], record["top_k"]) == ("kernels/sampling", "float32", 50)
    assert record["max_error"] == 0 and record["gbps"] == pytest.approx(
        2 * 300 * 4 / record["median_ms"] / 1e6, abs=0.06
    )


def test_a_wrong_filter_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "kept_tokens", lambda scaled_BV, *_, **__: scaled_BV > -1e9)
    with pytest.raises(SystemExit, match="of probability"):
        kernels.main([*SMALL, "--kernel", "sampling", "--case", "2x300", "--implementation", "xla"])


@pytest.mark.parametrize("options", [["--case", "3x40"], ["--case", "8@8", "--case", "3x40"], []], ids=str)
def test_cudnn_has_no_pages_to_read(options: list[str]) -> None:
    with pytest.raises(SystemExit, match="prompt chunks only"):
        kernels.main([*SMALL, "--implementation", "cudnn", *options])
