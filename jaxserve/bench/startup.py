"""`jaxserve bench startup`: fresh processes, each from its start to the first token.

A cold start has an empty cache of compiled steps, a warm one the cache that earlier starts filled; with --bundle
neither compiles a step. The files of packages and weights are in the system's page cache in both: it is not
ours to empty.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from jaxserve.bench import report
from jaxserve.bench.commands import say
from jaxserve.bench.flags import StartupArgs
from jaxserve.core.errors import ConfigError, EngineError

# startup: making the LLM, as vLLM's benchmark counts it. Of it, one after the other: config; weights; compilation,
# what was still to compile (or to load from a bundle) when the weights were there; capture, the first run of each step.
PHASES = ("import", "config", "weights", "compilation", "capture", "startup", "first_token", "total")


def run(args: StartupArgs, engine: dict[str, Any], argv: Sequence[str]) -> int:
    """Measure, print, write the result; the exit code."""
    given_cache = engine.get("compilation_cache_dir")
    if args.num_iters_cold < 0 or args.num_iters_warm < 0 or args.num_iters_cold + args.num_iters_warm < 1:
        raise ConfigError("num_iters_cold and num_iters_warm must be at least 0, and one of them at least 1")
    if args.num_iters_warm and args.num_iters_warmup < 1 and given_cache is None:
        raise ConfigError("warm starts need num_iters_warmup of at least 1, or a compilation_cache_dir that is filled")
    report.check_writable(args.output_json)
    starts: dict[str, list[dict[str, Any]]] = {"cold": [], "warm": []}
    for index in range(args.num_iters_cold):
        with tempfile.TemporaryDirectory(prefix="jaxserve-cold-") as cache:
            starts["cold"].append(_start(engine, cache, f"cold {index + 1}/{args.num_iters_cold}"))
    if args.num_iters_warm:
        with tempfile.TemporaryDirectory(prefix="jaxserve-warm-") as own_cache:
            cache = given_cache or own_cache
            for _ in range(args.num_iters_warmup):
                _start(engine, cache, "filling the cache")
            for index in range(args.num_iters_warm):
                starts["warm"].append(_start(engine, cache, f"warm {index + 1}/{args.num_iters_warm}"))
    _show(starts)
    if args.output_json is not None:
        last = (starts["cold"] + starts["warm"])[-1]
        result = report.base("startup", argv) | {
            "device": report.device_name(last["device"]),
            "model_id": report.model_name(last["model_path"]),
            "dtype": last["dtype"],
            "bundle": engine.get("bundle"),
            "num_compilations": {kind: [one["num_compilations"] for one in found] for kind, found in starts.items()},
            "shape": {name: last[name] for name in ("max_model_len", "max_num_seqs", "max_num_batched_tokens")},
        }
        for kind, measured in starts.items():
            for phase in PHASES if measured else ():
                seconds = [one[phase] for one in measured]
                result[f"avg_{kind}_{phase}_time"] = round(statistics.fmean(seconds), 4)
                result[f"{kind}_{phase}_times"] = seconds
                result[f"{kind}_{phase}_percentiles"] = report.percentiles_of(seconds)
        report.write(args.output_json, result)
    return 0


def _start(engine: dict[str, Any], cache: str, name: str) -> dict[str, Any]:
    """One process from its start to the first token; its seconds by phase, and what it ran. Raises EngineError."""
    asked = {"engine": engine | {"compilation_cache_dir": cache}, "started_s": time.monotonic()}
    done = subprocess.run(
        [sys.executable, "-m", "jaxserve.bench.first_token", json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise EngineError(f"the start ({name}) failed with exit code {done.returncode}: {last}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{name}: {found['total']:.2f} s to the first token")
    return found


def _show(starts: dict[str, list[dict[str, Any]]]) -> None:
    kinds = [kind for kind, measured in starts.items() if measured]
    print(f"{'seconds, median of':<24}" + "".join(f"{f'{len(starts[kind])} {kind}':>12}" for kind in kinds))
    counts = [statistics.median(one["num_compilations"] for one in starts[kind]) for kind in kinds]
    print(f"{'programs compiled':<24}" + "".join(f"{count:>12g}" for count in counts))
    for phase in PHASES:
        medians = [statistics.median(one[phase] for one in starts[kind]) for kind in kinds]
        print(f"{phase:<24}" + "".join(f"{seconds:>12.3f}" for seconds in medians))
