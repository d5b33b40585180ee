"""Many offline benchmarks of one engine that starts once, for a device that is there for minutes only.

python benchmarks/suite.py --out DIR --commit ID --limit-s 500 --only NAME NAME -- --model MODEL ENGINE-FLAGS

Each is the command of docs/benchmarks/README.md with the engine's flags in it, and leaves DIR/DATE-COMMIT-NAME.json.
After limit-s seconds no further one begins.
"""

import argparse
import contextlib
import datetime
import json
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

from jaxserve.bench import commands, record
from jaxserve.llm import LLM

SUITE = {
    "throughput-467-256": "throughput --num-prompts 500 --input-len 467 --output-len 256 --num-iters 3",
    "throughput-sharegpt": "throughput --dataset-name sharegpt --num-prompts 1000 --num-iters 2",
    "latency-b1": "latency --batch-size 1 --input-len 128 --output-len 256 --num-iters-warmup 1 --num-iters 3",
    "latency-b32": "latency --batch-size 32 --input-len 1024 --output-len 64 --num-iters-warmup 0 --num-iters 3",
    "latency-b128": "latency --batch-size 128 --input-len 1024 --output-len 64 --num-iters-warmup 0 --num-iters 2",
    "latency-b256": "latency --batch-size 256 --input-len 1024 --output-len 64 --num-iters-warmup 0 --num-iters 2",
    "prefill-8k": "latency --batch-size 1 --input-len 8192 --output-len 2 --num-iters-warmup 1 --num-iters 4",
    "throughput-1024-128": "throughput --num-prompts 1000 --input-len 1024 --output-len 128 --num-iters 1",
    "throughput-sharegpt-161-338": "throughput --dataset-name sharegpt --sharegpt-input-len 161 "
    "--sharegpt-output-len 338 --num-prompts 1000 --num-iters 2",
    "itl-slope": "latency --batch-size 1 --input-len 128 --output-len 8192 --itl-slope --num-iters 1 "
    "--num-iters-warmup 0",
}
QUIET = {"throughput": ["--disable-tqdm", "--disable-detokenize"], "latency": ["--disable-detokenize"]}


def lending(llm: LLM) -> Callable[..., Any]:
    """Opens the one engine for a benchmark, which must not close it."""

    @contextlib.contextmanager
    def lend(**_: Any) -> Generator[LLM]:
        yield llm

    return lend


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, help="folder of the records")
    p.add_argument("--commit", default=record.commit(), help="of this tree, where git cannot tell")
    p.add_argument("--limit-s", type=float, default=float("inf"), help="no benchmark begins after so many seconds")
    p.add_argument("--only", nargs="+", default=list(SUITE), choices=list(SUITE), help="these, in this order")
    p.add_argument("engine", nargs="+", help="after --: the flags of all benchmarks, --model among them")
    args = p.parse_args(argv)
    started = time.monotonic()
    args.out.mkdir(parents=True, exist_ok=True)
    llm: list[LLM] = []

    def open_once(**engine: Any) -> Any:
        if not llm:
            llm.append(LLM(**engine))
            print(f"the engine is there after {time.monotonic() - started:.0f} s", flush=True)
        return lending(llm[0])()

    for name in args.only:
        if time.monotonic() - started > args.limit_s:
            print(f"{name}: no time left", flush=True)
            continue
        path = args.out / f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}-{args.commit}-{name}.json"
        command, *flags = SUITE[name].split()
        print(f"== {name}", flush=True)
        getattr(commands, command)(
            [*args.engine, *flags, *QUIET[command], "--output-json", str(path)], open_llm=open_once
        )
        path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": args.commit}) + "\n")
    for one in llm:
        one.shutdown()


if __name__ == "__main__":
    main()
