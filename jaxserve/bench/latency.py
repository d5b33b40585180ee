"""`jaxserve bench latency`: one batch of equal requests, from its start to its last token."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxserve.bench import report
from jaxserve.bench.commands import say
from jaxserve.bench.datasets import random_ids
from jaxserve.bench.flags import LatencyArgs
from jaxserve.core.errors import ConfigError
from jaxserve.core.params import SamplingParams
from jaxserve.llm import LLM

_SECONDS = 6  # digits kept


def run(args: LatencyArgs, engine: dict[str, Any], argv: Sequence[str]) -> int:
    """Measure, print, write the result; the exit code.

    Where nothing else is said the engine is sized for the batch, and prompts share no pages: later batches
    would find the first one's.
    """
    for name in ("input_len", "output_len", "batch_size", "n", "num_iters"):
        if getattr(args, name) < 1:
            raise ConfigError(f"{name} is {getattr(args, name)}, it must be at least 1")
    report.check_writable(args.output_json)
    sized: dict[str, Any] = {
        "max_model_len": args.input_len + args.output_len,
        "max_num_seqs": args.batch_size * args.n,
        "enable_prefix_caching": False,
    }
    with LLM(progress=say, **(sized | engine)) as llm:
        latencies = _time_batches(llm, args)
        info = llm.info
        num_compilations = llm.stats().num_compilations_after_warmup
    avg, percentiles = statistics.fmean(latencies), report.percentiles_of(latencies)
    print(f"Avg latency: {avg:.6f} seconds")
    print(f"Std latency: {statistics.pstdev(latencies):.6f} seconds")
    for percentage, seconds in percentiles.items():
        print(f"{percentage}% percentile latency: {seconds:.6f} seconds")
    if args.output_json is not None:
        num_tokens = args.batch_size * args.n * args.output_len
        shape = {name: getattr(args, name) for name in ("input_len", "output_len", "batch_size", "n")}
        result = report.base("latency", argv) | {
            "device": report.device_name(info.device),
            "model_id": info.model_path,
            "dtype": info.dtype,
            "shape": shape | {"max_model_len": info.max_model_len, "max_num_seqs": info.max_num_seqs},
            "avg_latency": round(avg, _SECONDS),
            "std_latency": round(statistics.pstdev(latencies), _SECONDS),
            "latencies": [round(seconds, _SECONDS) for seconds in latencies],
            "percentiles": percentiles,
            "median_ms": round(1e3 * statistics.median(latencies), 3),
            "spread": round(max(latencies) / min(latencies), 3),
            "output_tokens_per_s": round(num_tokens / statistics.median(latencies), 2),
            "num_compilations_after_warmup": num_compilations,
        }
        report.write(args.output_json, result)
    return 0


def _time_batches(llm: LLM, args: LatencyArgs) -> list[float]:
    rng = np.random.default_rng(llm.args.seed)
    prompts = [random_ids(args.input_len, llm.info.vocab_size, rng) for _ in range(args.batch_size)]
    # Several outputs of a prompt must differ: greedy ones do not, and are refused.
    temperature = 0.0 if args.n == 1 else 1.0
    params = SamplingParams(
        n=args.n,
        temperature=temperature,
        max_tokens=args.output_len,
        ignore_eos=True,
        detokenize=not args.disable_detokenize,
    )
    latencies: list[float] = []
    for index in range(args.num_iters_warmup + args.num_iters):
        start = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
        seconds = time.perf_counter() - start
        for output in outputs:
            check_lengths(output, args.output_len)
        if index >= args.num_iters_warmup:
            latencies.append(seconds)
    return latencies


def check_lengths(output: Any, num_tokens: int) -> None:
    """Count only tokens that came: raises SystemExit where an output is shorter than asked."""
    if output.error is not None:
        raise SystemExit(f"{output.request_id} failed: {output.error}")
    for one in output.outputs:
        if len(one.token_ids) != num_tokens:
            raise SystemExit(f"{output.request_id}: {len(one.token_ids)} tokens came, {num_tokens} were asked for")
