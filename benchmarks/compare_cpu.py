"""Side by side with other engines: the same workload, in turn, round after round.

python benchmarks/compare_cpu.py --model DIR --peers peers.json --rounds 3 --name first-light

Each round runs jaxserve and then each peer, every one in a process of its own, so that all meet the same
machine. Ratios are taken within a round (above 1: jaxserve is faster) and reported as the median over the
rounds with their range. Losses are written down like wins.

peers.json is a list of {"engine": name, "command": [program, argument, ...]}, with optional "workloads" and
"dtypes" (lists of what the engine can run) and "repeat". In a command "{dtype}" and "{model}" are replaced;
the workload's options are appended. A peer prints one line of JSON on stdout with `version`, `wall_s`,
`wall_spread`, `out_tok_s`, `digest`, and where it knows them `ttft_ms_p50` and `tpot_ms_p50`.
"""

import argparse
import datetime
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxserve.bench import record

REPOSITORY = Path(__file__).resolve().parents[1]
OURS = "jaxserve"
BUILD = re.compile(r"-\d+-[0-9a-f]{7,}\S*")  # a version's build number, commit and branch
FOLDER = re.compile(r"/\S*/")  # records say nothing about where things lay on the machine
CASES = {
    "decode1": ["--workload", "decode1", "--prompt-len", "128", "--gen-len", "64"],
    "batch": ["--workload", "batch", "--batch", "16", "--prompt-len", "128", "--gen-len", "64"],
    "offline": [
        *("--workload", "offline", "--batch", "16", "--num-requests", "48"),
        *("--prompt-len", "128", "--gen-len", "64", "--lengths", "lognormal"),
    ],
}
JAXSERVE_FIELDS = ("device", "commit", "versions", "shape", "startup_s", "num_compilations_after_warmup")


@dataclass
class Peer:
    """One engine to compare with, and what it can run."""

    engine: str
    command: list[str]
    workloads: list[str] = field(default_factory=lambda: list(CASES))
    dtypes: list[str] = field(default_factory=lambda: ["float32", "bfloat16"])
    repeat: int | None = None

    def line(self, case: str, dtype: str, model: str, repeat: int) -> list[str]:
        """The command of one run."""
        filled = [part.replace("{dtype}", dtype).replace("{model}", model) for part in self.command]
        return [*filled, *CASES[case], "--repeat", str(self.repeat or repeat)]


@dataclass
class Run:
    """The figures of one process: medians over its passes."""

    median_ms: float
    spread: float
    output_tokens_per_s: float
    ttft_ms: float | None
    tpot_ms: float | None
    digest: str
    raw: dict[str, Any]

    def score(self, case: str) -> float:
        """What counts: decode speed of one request in tokens/s after the first, else output tokens/s in all."""
        if case == "decode1" and self.tpot_ms:
            return 1e3 / self.tpot_ms
        return self.output_tokens_per_s


def parse(line: dict[str, Any]) -> Run:
    """A Run from the line of jaxserve.bench.offline or of a peer."""
    if line.get("engine") == OURS:
        names = ("median_ms", "spread", "output_tokens_per_s", "ttft_ms", "tpot_ms", "digest")
        return Run(*(line.get(name) for name in names), raw=line)  # pyright: ignore[reportArgumentType]
    return Run(
        median_ms=round(1e3 * line["wall_s"], 3),
        spread=line["wall_spread"],
        output_tokens_per_s=line["out_tok_s"],
        ttft_ms=line.get("ttft_ms_p50"),
        tpot_ms=line.get("tpot_ms_p50"),
        digest=line["digest"],
        raw=line,
    )


def execute(command: Sequence[str], timeout_s: float) -> Run | str:
    """Run one process; its figures, or why there are none (the end of what it said)."""
    # Nothing of this process's environment may tune one engine and not the other.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "OMP_"))}
    try:
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired:
        return f"no result within {timeout_s:.0f} s"
    except OSError as error:
        return f"could not start: {error.strerror}"
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        said = done.stderr.strip().splitlines() or ["nothing on stderr"]
        return f"exit {done.returncode}: {FOLDER.sub('', said[-1])[:200]}"
    return parse(json.loads(lines[-1]))


def run_rounds(
    case: str, dtype: str, peers: list[Peer], args: argparse.Namespace
) -> tuple[list[dict[str, Run]], dict[str, str]]:
    """All rounds of one case. A peer that fails once is left out of the rest, with its reason."""
    ours = Peer(OURS, [sys.executable, "-m", "jaxserve.bench.offline", "--model", "{model}", "--dtype", "{dtype}"])
    failures: dict[str, str] = {}
    rounds: list[dict[str, Run]] = []
    for number in range(args.rounds):
        figures: dict[str, Run] = {}
        for engine in [ours, *peers]:
            if engine.engine in failures:
                continue
            found = execute(engine.line(case, dtype, args.model, args.repeat), args.timeout_s)
            if isinstance(found, str):
                failures[engine.engine] = found
                say(f"{case} {dtype} {number + 1} {engine.engine}: {found}")
            else:
                figures[engine.engine] = found
                say(f"{case} {dtype} {number + 1} {engine.engine}: {found.score(case):.2f} tokens/s {found.digest}")
        rounds.append(figures)
        if OURS in failures:
            break
    return rounds, failures


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def records_of(case: str, dtype: str, rounds: list[dict[str, Run]], failures: dict[str, str]) -> list[dict[str, Any]]:
    """One record an engine: medians over the rounds, and for peers our ratio to them, round by round."""
    ours = [figures[OURS] for figures in rounds if OURS in figures]
    if not ours:
        raise SystemExit(f"jaxserve itself failed: {failures[OURS]}")
    base = {"benchmark": f"cpu/{case}", "dtype": dtype} | {name: ours[-1].raw[name] for name in JAXSERVE_FIELDS[:4]}
    base |= {"model": ours[-1].raw["model"], "threads": ours[-1].raw["threads"], "rounds": len(rounds)}
    startup = {name: ours[-1].raw[name] for name in JAXSERVE_FIELDS[4:]}
    lines: list[dict[str, Any]] = [base | {"engine": OURS} | median_of(ours) | startup]
    engines = dict.fromkeys(name for figures in rounds for name in figures if name != OURS)
    for engine in engines:
        pairs = [(figures[OURS], figures[engine]) for figures in rounds if engine in figures and OURS in figures]
        ratios = [mine.score(case) / theirs.score(case) for mine, theirs in pairs]
        lines.append(
            base
            | {"engine": engine, "peer": engine, "peer_version": BUILD.sub("", pairs[-1][1].raw["version"])}
            | median_of([theirs for _, theirs in pairs])
            | {
                "ratio_to_peer": round(statistics.median(ratios), 3),
                "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
                "same_tokens": pairs[-1][0].digest == pairs[-1][1].digest,
            }
        )
    lines += [base | {"engine": name, "peer": name, "failed": reason} for name, reason in failures.items()]
    return lines


def median_of(runs: list[Run]) -> dict[str, Any]:
    """Medians over rounds; spread is the worst within a process, calibration that of each round."""
    found: dict[str, Any] = {
        "median_ms": round(statistics.median(run.median_ms for run in runs), 3),
        "spread": max(run.spread for run in runs),
        "output_tokens_per_s": round(statistics.median(run.output_tokens_per_s for run in runs), 2),
        "digest": runs[-1].digest,
        "calibration": [run.raw["calibration"] for run in runs],
    }
    for name in ("ttft_ms", "tpot_ms"):
        values = [value for run in runs if (value := getattr(run, name)) is not None]
        if values:
            found[name] = round(statistics.median(values), 3)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """The records of one case for a person."""
    head = f"{'engine':32s} {'tok/s':>9s} {'TTFT ms':>9s} {'TPOT ms':>9s} {'ratio':>7s} {'range':>15s}  digest"
    rows = [f"{lines[0]['benchmark']} {lines[0]['dtype']}", head]
    for line in lines:
        if "failed" in line:
            rows.append(f"{line['engine']:32s} {line['failed']}")
            continue
        low, high = line.get("ratio_range", (1.0, 1.0))
        rows.append(
            f"{line['engine']:32s} {line['output_tokens_per_s']:9.1f} {line.get('ttft_ms', float('nan')):9.1f} "
            f"{line.get('tpot_ms', float('nan')):9.2f} {line.get('ratio_to_peer', 1.0):7.2f} "
            f"{low:7.2f}-{high:.2f}  {line['digest']}"
        )
    return "\n".join(rows)


def write(lines: list[dict[str, Any]], name: str, out: Path) -> Path:
    """Append the records to docs/benchmarks/cpu/<date>-<commit>-<name>.json, one JSON line each."""
    out.mkdir(parents=True, exist_ok=True)
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    path = out / f"{date}-{lines[0]['commit'].rstrip('+')}-{name}.json"
    with path.open("a") as file:
        file.writelines(json.dumps({"date": date} | line) + "\n" for line in lines)
    return path


def main() -> None:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", required=True, help="checkpoint directory that all engines read")
    p.add_argument("--peers", required=True, type=Path, help="JSON list of engines and their commands")
    p.add_argument("--cases", nargs="+", choices=tuple(CASES), default=list(CASES))
    p.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    p.add_argument("--only", nargs="+", metavar="ENGINE", help="these peers alone")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--repeat", type=int, default=3, help="timed passes within one process")
    p.add_argument("--timeout-s", type=float, default=600, help="for one process")
    p.add_argument("--name", default="peers", help="part of the record's file name")
    p.add_argument("--out", type=Path, default=REPOSITORY / "docs" / "benchmarks" / "cpu")
    args = p.parse_args()
    args.model = str(Path(args.model).resolve())
    say(f"commit {record.commit()}, {record.cpu_name()}")
    known = [Peer(**entry) for entry in json.loads(args.peers.read_text())]
    for dtype in args.dtypes:
        for case in args.cases:
            peers = [
                peer
                for peer in known
                if case in peer.workloads and dtype in peer.dtypes and (not args.only or peer.engine in args.only)
            ]
            lines = records_of(case, dtype, *run_rounds(case, dtype, peers, args))
            print(table(lines), flush=True)
            print(write(lines, args.name, args.out).name, flush=True)


if __name__ == "__main__":
    main()
