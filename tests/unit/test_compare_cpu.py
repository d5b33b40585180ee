"""The side-by-side benchmark: real child processes that print figures, and the page made from the records."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compare_cpu, render_performance

OURS: dict[str, Any] = {
    "engine": "jaxserve", "device": "a CPU, 2 cores", "commit": "abc123", "versions": {"jaxserve": "0.1.0"},
    "shape": {"prompt_len": 8, "gen_len": 4, "batch": 2, "num_requests": 2, "lengths": "fixed"}, "startup_s": 1.0,
    "num_compilations_after_warmup": 0, "model": "m", "threads": 2, "median_ms": 100.0, "spread": 1.1,
    "output_tokens_per_s": 80.0, "ttft_ms": 20.0, "tpot_ms": 10.0, "digest": "d1", "calibration": [],
}  # fmt: skip
PEER: dict[str, Any] = {
    "peer": "p", "version": "9.9", "wall_s": 0.2, "wall_spread": 1.2, "out_tok_s": 40.0, "ttft_ms_p50": 30.0,
    "tpot_ms_p50": 25.0, "digest": "d1", "calibration": [],
}  # fmt: skip


def printing(line: dict[str, Any]) -> list[str]:
    return [sys.executable, "-c", f"print('noise'); print({json.dumps(line)!r})"]


def run(line: dict[str, Any]) -> compare_cpu.Run:
    found = compare_cpu.execute(printing(line), timeout_s=60)
    assert isinstance(found, compare_cpu.Run), found
    return found


def test_figures_of_both_kinds_of_lines() -> None:
    ours, theirs = run(OURS), run(PEER)
    assert ours.score("decode1") == 100
    assert theirs.score("decode1") == 40
    assert ours.score("batch") == 80
    assert theirs.median_ms == 200


def test_a_failing_peer_is_reported_without_folders() -> None:
    found = compare_cpu.execute([sys.executable, "-c", "raise SystemExit('no /secret/place/x.so here')"], timeout_s=60)
    assert found == "exit 1: no x.so here"
    assert compare_cpu.execute(["/no/such/program"], timeout_s=60) == "could not start: No such file or directory"


def test_ratios_are_taken_within_rounds() -> None:
    slow = run(OURS | {"output_tokens_per_s": 20.0})
    rounds = [{"jaxserve": run(OURS), "p": run(PEER)}, {"jaxserve": slow, "p": run(PEER | {"out_tok_s": 10.0})}]
    ours, theirs, failed = compare_cpu.records_of("batch", "float32", rounds, {"q": "exit 1: no"})
    assert ours["output_tokens_per_s"] == 50
    assert theirs["ratio_to_peer"] == 2
    assert theirs["ratio_range"] == [2, 2]
    assert theirs["same_tokens"]
    assert theirs["peer_version"] == "9.9"
    assert failed["failed"] == "exit 1: no"


def test_without_our_own_figures_there_is_no_record() -> None:
    with pytest.raises(SystemExit, match="jaxserve itself failed: out of memory"):
        compare_cpu.records_of("batch", "float32", [{}], {"jaxserve": "out of memory"})


def test_page_shows_the_newest_run_with_losses_and_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render_performance, "DOCS", tmp_path)
    out = tmp_path / "benchmarks" / "cpu"
    old = compare_cpu.records_of("batch", "float32", [{"jaxserve": run(OURS), "p": run(PEER)}], {})
    fast_peer = run(PEER | {"out_tok_s": 160.0, "digest": "d2"})
    new = compare_cpu.records_of("batch", "float32", [{"jaxserve": run(OURS), "p": fast_peer}], {"q": "exit 1: no"})
    compare_cpu.write(old, "first", out)
    path = compare_cpu.write(new, "second", out)
    page = render_performance.render(render_performance.read_records(tmp_path / "benchmarks"))
    assert "| p (9.9) | 160.0 | 30.0 | 25.00 | 0.50 (0.50 to 0.50) | no |" in page
    assert "| q | did not run: exit 1: no |" in page
    assert "2.00 (2.00" not in page
    assert f"benchmarks/cpu/{path.name}" in page


def test_page_without_records_says_so() -> None:
    assert "No comparison has been recorded yet" in render_performance.render([])
