"""A model's steps by themselves, under several of XLA's options: what a choice of options is made from.

python benchmarks/step_times.py --model DIR --out FILE --step decode:128x1024 --step prompt:8192x1024
    --options '{"xla_gpu_enable_triton_gemm": false}' --options '{}'

decode:ROWSxCONTEXT is one token a row, prompt:TOKENSxLENGTH whole prompts of a length. Weights are random. Each
program runs back to back, so the host is out of the way; the time is the best of the repeats.
"""

import argparse
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxserve.bench.step_case import Case
from jaxserve.core.config import EngineArgs
from jaxserve.models.weights import LoadedModel, load_params
from jaxserve.runner.device import claim_device
from jaxserve.runner.lowering import compiler_options, lower_step
from jaxserve.runner.startup import configure
from jaxserve.runner.step import initial_state


class Bench:
    """Weights and state of one engine, without the engine."""

    def __init__(self, engine: EngineArgs, most_pages: int) -> None:
        self.device = claim_device(engine.gpu_memory_utilization)
        config, _ = configure(engine, self.device, print)
        pages = min(config.cache.num_pages, most_pages)
        self.config = replace(config, cache=replace(config.cache, num_pages=pages))
        self.loaded: LoadedModel = load_params(config.model, Path(config.model_path), "dummy", 0)
        self.state = initial_state(self.config)

    def compile(self, case: Case, options: dict[str, Any]) -> jax.stages.Compiled:
        bucket, shapes = case.bucket(self.config), jax.eval_shape(lambda: self.state)
        lowered = lower_step(self.config, self.loaded, bucket, shapes)
        return lowered.compile(compiler_options(self.device.platform, bucket.num_tokens) | options)

    def time_ms(self, case: Case, step: jax.stages.Compiled, num_steps: int, repeats: int) -> list[float]:
        vector, pages = case.packed(self.config)
        table = np.zeros(self.state.paged.page_table_RM.shape, np.int32)
        table[: pages.shape[0], : pages.shape[1]] = pages
        self.state = replace(self.state, paged=replace(self.state.paged, page_table_RM=jnp.asarray(table)))
        times: list[float] = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for _ in range(num_steps):
                _, self.state = step(self.loaded.leaves, self.state, vector)
            jax.block_until_ready(self.state)
            times.append((time.perf_counter() - started) / num_steps * 1e3)
        return sorted(times[1:])


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", help="directory with a config.json; the demo model if unset")
    p.add_argument("--out", type=Path, help="file for the JSON lines")
    p.add_argument("--step", action="append", type=Case.parse, required=True, metavar="KIND:NxLENGTH")
    p.add_argument("--options", action="append", type=json.loads, metavar="JSON", help="laid over the engine's own")
    p.add_argument("--max-num-seqs", type=int)
    p.add_argument("--max-num-batched-tokens", type=int)
    p.add_argument("--max-model-len", default="auto")
    p.add_argument("--most-pages", type=int, default=8400, help="of the pool: it must hold the largest step's rows")
    p.add_argument("--num-steps", type=int, default=20, help="back to back in one repeat")
    p.add_argument("--repeats", type=int, default=5)
    args = p.parse_args(argv)
    limits = {name: getattr(args, name) for name in ("max_num_seqs", "max_num_batched_tokens", "max_model_len")}
    bench = Bench(EngineArgs(model=args.model, load_format="dummy", **limits), args.most_pages)
    jobs = [(options, case) for options in args.options or [{}] for case in args.step]
    with ThreadPoolExecutor(8) as pool:
        steps = list(pool.map(lambda job: bench.compile(job[1], job[0]), jobs))
    lines: list[str] = []
    for (options, case), step in zip(jobs, steps, strict=True):
        times = bench.time_ms(case, step, args.num_steps, args.repeats)
        found = vars(case) | {
            "options": options,
            "ms": round(times[0], 3),
            "median_ms": round(times[len(times) // 2], 3),
        }
        lines.append(json.dumps(found))
        print(lines[-1], flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
