"""`jaxserve bench throughput`: a dataset through `LLM`, all requests at once."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from jaxserve.bench import record, report
from jaxserve.bench.commands import say
from jaxserve.bench.datasets import Encode, changed_flags, describe, make_dataset
from jaxserve.bench.flags import DatasetArgs, ThroughputArgs
from jaxserve.bench.offline import run_pass
from jaxserve.bench.workload import WorkItem, max_num_tokens
from jaxserve.core.errors import ConfigError
from jaxserve.engine.step_figures import figures_between
from jaxserve.llm import LLM


def run(
    args: ThroughputArgs,
    dataset: DatasetArgs,
    engine: dict[str, Any],
    argv: Sequence[str],
    open_llm: Callable[..., LLM] = LLM,
) -> int:
    """Measure, print, write the result; the exit code. Each pass begins with an empty prefix cache.

    open_llm: called with the engine's arguments; closed after the measurement.
    """
    for name, least in (("num_iters", 1), ("num_warmups", 0)):
        if getattr(args, name) < least:
            raise ConfigError(f"{name} is {getattr(args, name)}, it must be at least {least}")
    report.check_writable(args.output_json)
    with open_llm(progress=say, **engine) as llm:
        items = make_dataset(dataset, llm.info.vocab_size, llm.args.seed, lambda: _encode(llm), llm.info.max_model_len)
        longest = max_num_tokens(items)
        if longest > llm.info.max_model_len:
            raise ConfigError(
                f"the longest request has {longest} tokens, prompt and output together, and max_model_len is "
                f"{llm.info.max_model_len}: ask for less, such as --input-len and --output-len"
            )
        if args.num_warmups:
            _complete(llm, items[: args.num_warmups], args, shows_bar=False)
        before = llm.stats()
        passes = [_complete(llm, items, args, shows_bar=not args.disable_tqdm) for _ in range(args.num_iters)]
        info, stats = llm.info, llm.stats()
    steps = figures_between(before, stats)
    elapsed = statistics.median(one.wall_s for one in passes)
    num_prompt_tokens = sum(len(item.prompt_token_ids) for item in items)
    num_output_tokens = sum(item.num_output_tokens for item in items)
    total = num_prompt_tokens + num_output_tokens
    print(
        f"Throughput: {len(items) / elapsed:.2f} requests/s, {total / elapsed:.2f} total tokens/s, "
        f"{num_output_tokens / elapsed:.2f} output tokens/s"
    )
    print(f"Steps: {steps}")
    print(f"Total num prompt tokens:  {num_prompt_tokens}")
    print(f"Total num output tokens:  {num_output_tokens}")
    if args.output_json is not None:
        limits = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "page_size", "num_pages")
        result = report.base("throughput", argv) | {
            "device": report.device_name(info.device),
            "model_id": report.model_name(info.model_path),
            "dtype": info.dtype,
            "kv_cache_dtype": info.kv_cache_dtype,
            "dataset_name": dataset.dataset_name,
            "dataset_flags": changed_flags(dataset),
            "enable_prefix_caching": llm.args.enable_prefix_caching,
            "shape": describe(items) | {name: getattr(info, name) for name in limits},
            "elapsed_time": elapsed,
            "num_requests": len(items),
            "total_num_tokens": total,
            "total_num_prompt_tokens": num_prompt_tokens,
            "total_num_output_tokens": num_output_tokens,
            "requests_per_second": len(items) / elapsed,
            "tokens_per_second": total / elapsed,
            **record.summarise(passes),
            "prefix_cache_queries": stats.prefix_cache_queries,
            "prefix_cache_hits": stats.prefix_cache_hits,
            "num_preemptions": stats.num_preemptions,
            **({} if steps is None else steps.record()),
            "device_memory_used_bytes": stats.device_memory_used_bytes,
            "num_compilations_after_warmup": stats.num_compilations_after_warmup,
        }
        report.write(args.output_json, result)
    return 0


def _encode(llm: LLM) -> Encode:
    tokenizer = llm.get_tokenizer()
    return lambda text: tokenizer.encode(text, False)


def _complete(llm: LLM, items: list[WorkItem], args: ThroughputArgs, *, shows_bar: bool) -> record.Pass:
    llm.reset_prefix_cache()
    return run_pass(llm, items, detokenize=not args.disable_detokenize, shows_bar=shows_bar)
