"""Offline benchmark: one workload through `LLM`, one JSON line on stdout.

python -m jaxserve.bench.offline --model DIR --workload decode1|batch|offline --dtype float32
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence

from jaxserve.bench import record
from jaxserve.bench.workload import WorkItem, Workload, make_items, max_num_tokens, read_vocab_size
from jaxserve.core.params import SamplingParams
from jaxserve.llm import LLM

PACKAGES = ("jaxserve", "jax", "jaxlib", "flax", "numpy")


def parser() -> argparse.ArgumentParser:
    """Command line of the benchmark."""
    p = argparse.ArgumentParser(prog="python -m jaxserve.bench.offline", description=__doc__)
    p.add_argument("--model", required=True, help="local checkpoint directory")
    p.add_argument("--workload", choices=("decode1", "batch", "offline"), default="decode1")
    p.add_argument("--prompt-len", type=int, default=128, help="tokens of a prompt (the mean, if ragged)")
    p.add_argument("--gen-len", type=int, default=64, help="tokens of an output (the mean, if ragged)")
    p.add_argument("--batch", type=int, default=16, help="requests together, at most")
    p.add_argument("--num-requests", type=int, default=64, help="offline: requests in all")
    p.add_argument("--lengths", choices=("fixed", "lognormal"), default="fixed", help="offline: lognormal is ragged")
    p.add_argument("--sigma-in", type=float, default=1.1, help="spread of the logarithm of prompt lengths")
    p.add_argument("--sigma-out", type=float, default=0.8, help="spread of the logarithm of output lengths")
    p.add_argument("--shared-prefix", type=int, default=0, help="tokens every prompt begins with")
    p.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    p.add_argument("--load-format", choices=("auto", "safetensors", "dummy"), default="auto")
    p.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="cores to use")
    p.add_argument("--repeat", type=int, default=3, help="timed passes after one that is not")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--max-model-len", type=int, default=0, help="0: what the workload needs")
    p.add_argument(
        "--max-num-batched-tokens", type=int, default=None, help="tokens of one step; unset: the engine's own"
    )
    return p


def workload_of(args: argparse.Namespace) -> Workload:
    """The workload that the command line describes."""
    return Workload(
        kind=args.workload,
        prompt_len=args.prompt_len,
        gen_len=args.gen_len,
        batch=args.batch,
        num_requests=args.num_requests,
        lengths=args.lengths,
        sigma_in=args.sigma_in,
        sigma_out=args.sigma_out,
        shared_prefix=args.shared_prefix,
        seed=args.seed,
    )


def open_engine(args: argparse.Namespace, workload: Workload, items: list[WorkItem]) -> LLM:
    """An engine sized for the workload. Prompts share pages only where the workload is about that."""
    limits = {} if args.max_num_batched_tokens is None else {"max_num_batched_tokens": args.max_num_batched_tokens}
    return LLM(
        model=args.model,
        dtype=args.dtype,
        load_format=args.load_format,
        seed=args.seed,
        max_model_len=args.max_model_len or max_num_tokens(items),
        max_num_seqs=workload.num_rows,
        enable_prefix_caching=workload.shared_prefix > 0,
        **limits,
    )


def run_pass(llm: LLM, items: list[WorkItem], *, detokenize: bool = False, shows_bar: bool = False) -> record.Pass:
    """Complete every item once, greedily and to its full length, and time it.

    Raises SystemExit where fewer tokens came than were asked for.
    """
    prompts = [{"prompt_token_ids": item.prompt_token_ids} for item in items]
    params = [
        SamplingParams(temperature=0.0, max_tokens=item.num_output_tokens, ignore_eos=True, detokenize=detokenize)
        for item in items
    ]
    start = time.monotonic()
    outputs = llm.generate(prompts, params, use_tqdm=shows_bar)
    wall_s = time.monotonic() - start
    first_s, last_s = [], []
    for output, item in zip(outputs, items, strict=True):
        num_tokens = len(output.outputs[0].token_ids)
        if num_tokens != item.num_output_tokens:
            raise SystemExit(f"{output.request_id}: {num_tokens} tokens came, {item.num_output_tokens} were asked for")
        metrics = output.metrics
        assert metrics is not None and metrics.time_to_first_token_s is not None, "the engine times every request"
        assert metrics.finished_time_s is not None, "a finished request has a finishing time"
        first_s.append(metrics.arrival_time_s + metrics.time_to_first_token_s - start)
        last_s.append(metrics.finished_time_s - start)
    return record.Pass(wall_s, first_s, last_s, [list(output.outputs[0].token_ids) for output in outputs])


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Load, warm up, run the passes; the record to print."""
    workload = workload_of(args)
    items = make_items(workload, read_vocab_size(args.model))
    started = time.perf_counter()
    llm = open_engine(args, workload, items)
    startup_s = time.perf_counter() - started
    try:
        run_pass(llm, items)
        before = record.calibrate()
        passes: list[record.Pass] = []
        for _ in range(args.repeat):
            if workload.shared_prefix:
                llm.reset_prefix_cache()
            passes.append(run_pass(llm, items))
        after = record.calibrate()
        num_compilations = llm.stats().num_compilations_after_warmup
    finally:
        llm.shutdown()
    shape = {name: value for name, value in vars(workload).items() if name not in ("kind", "seed")}
    return {
        "benchmark": workload.kind,
        "engine": "jaxserve",
        "device": record.cpu_name() if llm.info.device == "cpu" else llm.info.device,
        "commit": record.commit(),
        "versions": record.versions(*PACKAGES),
        "model": os.path.basename(os.path.normpath(args.model)),
        "dtype": llm.info.dtype,
        "shape": shape | {"num_requests": len(items), "max_model_len": args.max_model_len or max_num_tokens(items)},
        **record.summarise(passes),
        "first_tokens": passes[-1].tokens[0][:8],
        "num_compilations_after_warmup": num_compilations,
        "startup_s": round(startup_s, 2),
        "threads": args.threads,
        "calibration": [before, after],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: whatever libraries print goes to stderr, stdout carries the one line."""
    args = parser().parse_args(argv)
    cores = sorted(os.sched_getaffinity(0))
    if not 1 <= args.threads <= len(cores):
        raise SystemExit(f"--threads {args.threads}: this machine gives 1 to {len(cores)} cores")
    os.sched_setaffinity(0, set(cores[: args.threads]))
    with contextlib.redirect_stdout(sys.stderr):
        line = json.dumps(measure(args))
    print(line, flush=True)


if __name__ == "__main__":
    main()
