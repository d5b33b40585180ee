"""docs/performance.md: the newest record of each case, kernels side by side, engines with what bound them."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import render_performance
from benchmarks.performance_sections import TABLES
from benchmarks.performance_tables import newest, sections

BASE: dict[str, Any] = {
    "date": "2026-11-25T10:00:00+00:00",
    "device": "NVIDIA H200",
    "commit": "abc123",
    "versions": {"jax": "0.11.2"},
    "file": "benchmarks/h200/a.json",
}
DECODE: dict[str, Any] = BASE | {
    "benchmark": "kernels/decode",
    "implementation": "mosaic_gpu",
    "case": "8x1024",
    "dtype": "bfloat16",
    "pool_dtype": "bfloat16",
    "shape": {"heads": 32, "kv_heads": 8},
    "median_ms": 0.1,
    "spread": 1.0,
    "gbps": 1000.0,
    "copy_gbps": 4000.0,
    "bandwidth_fraction": 0.25,
    "max_error": 1e-3,
}
SERVE: dict[str, Any] = BASE | {
    "benchmark": "serve",
    "device": None,
    "label": "openai",
    "model_id": "llama-8b",
    "dataset_name": "mixed",
    "request_rate": 12.0,
    "completed": 100,
    "failed": 0,
    "shape": {"input_mean": 980, "output_mean": 160, "long_input_mean": 8192, "long_output_mean": 64,
              "short_input_mean": 180, "short_output_mean": 170},
    "p99_itl_ms": 21.0,
    "floor_fraction": 0.62,
    "verdict": "memory",
    "command": "jaxserve bench serve --tokenizer /tmp/some/where/llama-8b --dataset-name mixed",
    "kinds": {"long": {"p99_itl_ms": 9.0, "completed": 10}, "short": {"p99_itl_ms": 12.5, "completed": 90}},
}  # fmt: skip


def shown(*records: dict[str, Any]) -> str:
    return "\n".join(sections(TABLES, records))


def lines(page: str, case: str) -> list[list[str]]:
    """The cells of the table lines that begin with a case."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if f"| {case} |" in line
    ]


@pytest.mark.parametrize(
    "old", ["2026-11-25T09:59:59+00:00", "2026-11-25", "2026-11-25T10:30:00+02:00", "2026-11-24T23:00:00-01:00"]
)
def test_the_newest_record_of_a_case_wins_wherever_it_stands(old: str) -> None:
    ancient = DECODE | {"date": old, "gbps": 1.0, "file": "benchmarks/h200/z.json"}
    for order in ([DECODE, ancient], [ancient, DECODE]):
        assert [record["gbps"] for record in newest(order)] == [1000.0]
        page = shown(*order)
        assert len(lines(page, "8x1024")) == 1
        assert "z.json" not in page


def test_of_equal_dates_the_later_file_wins() -> None:
    again = DECODE | {"gbps": 7.0}
    assert [record["gbps"] for record in newest([DECODE, again])] == [7.0]


@pytest.mark.parametrize(
    "change",
    [
        {"implementation": "jax_triton"},
        {"pool_dtype": "float8_e4m3fn"},
        {"case": "16x1024"},
        {"device": "NVIDIA H100"},
        {"shape": {"heads": 32, "kv_heads": 1}},
    ],
)
def test_what_differs_stands_beside(change: dict[str, Any]) -> None:
    assert len(newest([DECODE, DECODE | change])) == 2


def test_what_a_run_chooses_by_itself_makes_no_case() -> None:
    old = DECODE | {"date": "2026-11-24", "shape": DECODE["shape"] | {"layers": 6}}
    del old["pool_dtype"]  # the first records have none: it is the queries' dtype
    assert newest([DECODE, old]) == [DECODE]


def test_implementations_of_a_case_are_neighbours_and_pools_apart() -> None:
    page = shown(
        DECODE | {"implementation": "jax_triton", "case": "16x1024"},
        DECODE | {"implementation": "jax_triton"},
        DECODE | {"case": "16x1024"},
        DECODE,
        DECODE | {"case": "8x1024r"},
        DECODE | {"pool_dtype": "float8_e4m3fn", "gbps": 2000.0},
    )
    table = [line for line in page.splitlines() if line.startswith("| ") and "x1024" in line]
    names = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in table]
    assert names == [
        ("8x1024", "mosaic_gpu"),
        ("8x1024", "jax_triton"),
        ("16x1024", "mosaic_gpu"),
        ("16x1024", "jax_triton"),
        ("8x1024r", "mosaic_gpu"),
        ("8x1024", "mosaic_gpu"),
    ]
    assert "NVIDIA H200, bfloat16, heads 32, kv_heads 8, over a pool of float8_e4m3fn." in page
    assert page.count("## Decode attention on a GPU") == 1


def test_sampling() -> None:
    record = DECODE | {"benchmark": "kernels/sampling", "case": "64x128256", "top_k": 50, "top_p": 0.9}
    page = shown({name: value for name, value in record.items() if name not in ("shape", "pool_dtype")})
    assert "NVIDIA H200, top-k 50, top-p 0.9." in page
    assert lines(page, "64x128256")[0][1] == "mosaic_gpu"


def test_a_mixed_load_shows_the_short_requests_apart() -> None:
    page = shown(SERVE)
    head, apart = page.split("## Short requests beside long ones")
    assert "h200, llama-8b." in head  # a server does not name its device
    assert "62 %, memory | 2026-11-25 `abc123` |" in head
    assert "`jaxserve bench serve --tokenizer llama-8b --dataset-name mixed`" in head
    kinds = [[cell.strip() for cell in line.split("|")] for line in apart.splitlines() if line.startswith("| jaxserve")]
    assert [[*cells[3:6], cells[9]] for cells in kinds] == [
        ["short", "180 / 170", "90", "12.50"],
        ["long", "8192 / 64", "10", "9.00"],
    ]
    assert "Short requests" not in shown({name: value for name, value in SERVE.items() if name != "kinds"})


def test_the_page_is_that_of_the_records() -> None:
    docs = Path(render_performance.DOCS)
    records = render_performance.read_records(docs / "benchmarks")
    page = render_performance.render(records)
    assert page == render_performance.PAGE.read_text(), "run python benchmarks/render_performance.py"
    for file in {record["file"] for record in newest(records) if record["benchmark"].startswith("kernels/")}:
        assert f"({file})" in page
