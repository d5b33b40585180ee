"""`jaxserve bench latency`: one batch of equal requests, from its start to its last token."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxserve.bench import itl_slope, record, report
from jaxserve.bench.commands import say
from jaxserve.bench.datasets import random_ids
from jaxserve.bench.flags import LatencyArgs
from jaxserve.bench.offline import run_pass
from jaxserve.bench.workload import WorkItem
from jaxserve.core.errors import ConfigError
from jaxserve.engine.step_figures import figures_between
from jaxserve.llm import LLM

_SECONDS = 6  # digits kept


def run(args: LatencyArgs, engine: dict[str, Any], argv: Sequence[str], open_llm: Callable[..., LLM] = LLM) -> int:
    """Measure, print, write the result; the exit code.

    Where nothing else is said the engine is sized for the batch, and prompts share no pages: later batches
    would find the first one's. open_llm: called with the engine's arguments; closed after the measurement.
    """
    for name in ("input_len", "output_len", "batch_size", "num_iters", "num_iters_warmup"):
        least = 0 if name == "num_iters_warmup" else 1
        if getattr(args, name) < least:
            raise ConfigError(f"{name} is {getattr(args, name)}, it must be at least {least}")
    if args.itl_slope and args.output_len < itl_slope.MIN_TOKENS:
        raise ConfigError(f"itl_slope needs an output_len of at least {itl_slope.MIN_TOKENS}, not {args.output_len}")
    report.check_writable(args.output_json)
    sized: dict[str, Any] = {
        "max_model_len": args.input_len + args.output_len,
        "max_num_seqs": args.batch_size,
        "enable_prefix_caching": False,
    }
    with open_llm(progress=say, **(sized | engine)) as llm:
        items = _items(llm, args)
        for _ in range(args.num_iters_warmup):
            run_pass(llm, items, detokenize=not args.disable_detokenize)
        before = llm.stats()
        passes = [run_pass(llm, items, detokenize=not args.disable_detokenize) for _ in range(args.num_iters)]
        info, after = llm.info, llm.stats()
        slope = itl_slope.measure(llm, items) if args.itl_slope else None
    steps = figures_between(before, after)
    latencies = [one.wall_s for one in passes]
    avg, std = statistics.fmean(latencies), statistics.pstdev(latencies)
    percentiles = report.percentiles_of(latencies)
    print(f"Avg latency: {avg:.6f} seconds")
    print(f"Std latency: {std:.6f} seconds")
    for percentage, seconds in percentiles.items():
        print(f"{percentage}% percentile latency: {seconds:.6f} seconds")
    print(f"Steps: {steps}")
    if slope is not None:
        print(slope)
    if args.output_json is not None:
        shape = {name: getattr(args, name) for name in ("input_len", "output_len", "batch_size")}
        result = report.base("latency", argv) | {
            "device": report.device_name(info.device),
            "model_id": report.model_name(info.model_path),
            "dtype": info.dtype,
            "kv_cache_dtype": info.kv_cache_dtype,
            "shape": shape | {"max_model_len": info.max_model_len, "max_num_seqs": info.max_num_seqs},
            "avg_latency": round(avg, _SECONDS),
            "std_latency": round(std, _SECONDS),
            "latencies": [round(seconds, _SECONDS) for seconds in latencies],
            "percentiles": percentiles,
            **record.summarise(passes),
            **({} if steps is None else steps.record()),
            **({} if slope is None else slope.record()),
            "num_compilations_after_warmup": after.num_compilations_after_warmup,
        }
        report.write(args.output_json, result)
    return 0


def _items(llm: LLM, args: LatencyArgs) -> list[WorkItem]:
    rng = np.random.default_rng(llm.args.seed)
    vocab_size = llm.info.vocab_size
    return [WorkItem(random_ids(args.input_len, vocab_size, rng), args.output_len) for _ in range(args.batch_size)]
