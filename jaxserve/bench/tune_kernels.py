"""`jaxserve bench kernels --tune`: every shape of the decode kernel that fits, timed; the best is a line of a table."""

import argparse
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from pallas_kernels.tuning import table_name, trying

CASES = ("1x32768", "16x2048r", "32x4096", "256x1024")
_SHARED_BYTES = 227 << 10  # of a Hopper's multiprocessor, for all of its workers
_OPERAND_ROWS = 64
_TILE = 64

Measure = Callable[[str], dict[str, Any]]


def candidates(head_dim: int, itemsize: int) -> Iterator[tuple[int, int]]:
    """(workers a multiprocessor, stages of each) whose queries, results and stages fit its shared memory.

    itemsize: bytes of a number of the pool. One of 8 bits is widened into a tile of keys and one of values beside it.
    """
    for workers, stages in itertools.product((1, 2, 3, 4), (2, 3, 4, 6, 8)):
        operands = (2 * _OPERAND_ROWS + 16) * head_dim * 2
        tiles = 2 * _TILE * head_dim * (stages * itemsize + (2 if itemsize == 1 else 0))
        if workers * (operands + tiles + 1024) <= _SHARED_BYTES:
            yield workers, stages


def tune(measure: Measure, args: argparse.Namespace, itemsize: int, folder: Path) -> dict[str, Any]:
    """Times all candidates over the cases and writes the best into the device's table in `folder`; what was found.

    Best is the least geometric mean of the times, each over the case's best: no case may pay for another.
    """
    cases = args.case or CASES
    times: dict[tuple[int, int], dict[str, float]] = {}
    for candidate in candidates(args.head_dim, itemsize):
        try:
            with trying(*candidate):
                times[candidate] = {case: measure(case)["median_ms"] for case in cases}
        except jax.errors.JaxRuntimeError as error:  # too many registers or too much shared memory after all
            print(f"{candidate}: {str(error).splitlines()[0]}", flush=True)
            continue
        print(f"{candidate}: {json.dumps(times[candidate])}", flush=True)
    if not times:
        raise SystemExit("no shape of the kernel ran")
    fastest = {case: min(found[case] for found in times.values()) for case in cases}

    def cost(candidate: tuple[int, int]) -> float:
        return math.fsum(math.log(times[candidate][case] / fastest[case]) for case in cases) / len(cases)

    best = min(times, key=cost)
    path = folder / table_name(jax.devices()[0].device_kind)
    path.write_text(_with_line(path.read_text() if path.exists() else "", args.head_dim, best))
    print(f"{path}: head_{args.head_dim} = {list(best)}", flush=True)
    return {"best": list(best), "table": path.name, "times_ms": {f"{w}x{s}": found for (w, s), found in times.items()}}


def _with_line(table: str, head_dim: int, best: tuple[int, int]) -> str:
    """The table with the line of this head size in its section [decode], the others as they were."""
    line = f"head_{head_dim} = {list(best)}"
    lines = table.splitlines() or ["[decode]"]
    begin = lines.index("[decode]") + 1
    end = next((i for i in range(begin, len(lines)) if lines[i].startswith("[")), len(lines))
    for i in range(begin, end):
        if lines[i].partition("=")[0].strip() == f"head_{head_dim}":
            lines[i] = line
            break
    else:
        lines.insert(begin, line)
    return "\n".join(lines) + "\n"
