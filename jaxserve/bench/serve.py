"""`jaxserve bench serve`: load on a running OpenAI-compatible server."""

import asyncio
import collections
import datetime
import gc
import json
import resource
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from jaxserve.bench import arrivals, metrics, record, report, server_meter
from jaxserve.bench.commands import say
from jaxserve.bench.datasets import Encode, changed_flags, describe, kinds_of, make_dataset, random_ids
from jaxserve.bench.flags import BACKENDS, DatasetArgs, ServeArgs
from jaxserve.bench.load_generator import LoadGenerator, Prepared, run_load
from jaxserve.bench.workload import WorkItem, read_vocab_size
from jaxserve.core.errors import CheckpointError, ConfigError, EngineError
from jaxserve.demo import DEMO_MODEL_NAME, demo_checkpoint
from jaxserve.engine.step_figures import StepFigures, figures_between

_ENDPOINTS = {"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
_NUM_SHOWN_ERRORS = 10
_SPARE_FILES = 128
_BUSY_SHARE = 0.7  # of one core: above it, what is measured may be the load generator


@dataclass(frozen=True)
class Target:
    """A server that answers. model: the name to ask for; max_model_len: None where the server does not say."""

    base_url: str
    model: str
    root: str
    max_model_len: int | None


def run(args: ServeArgs, dataset: DatasetArgs, argv: Sequence[str]) -> int:
    """Measure, print the table, write the result. The exit code: 1 where no request succeeded."""
    _check(args)
    percentiles = metrics.read_percentiles(args.metric_percentiles)
    names = metrics.read_metrics(args.percentile_metrics)
    goodput_ms = metrics.read_goodput(args.goodput or [])
    labels = read_pairs("metadata", args.metadata)
    headers = read_pairs("header", args.header)
    if args.api_key:
        headers["authorization"] = f"Bearer {args.api_key}"
    path = _result_path(args)
    report.check_writable(path)
    target = find_target(args, headers)
    tokens = TokenSource(args, target)
    items = make_dataset(dataset, tokens.vocab_size, args.seed, lambda: tokens.encode, target.max_model_len)
    _check_fits(items, target)
    trial = _trial(items[0], tokens.vocab_size, args.seed)

    timelines, duration_s, cpu_s, steps = asyncio.run(_measure(args, target, headers, tokens, items, trial))
    figures = metrics.summarise(timelines, duration_s, percentiles, goodput_ms, names)
    kinds = _by_kind(items, timelines, duration_s, percentiles, goodput_ms)
    errors = collections.Counter(one.error for one in timelines if one.error is not None)
    result = report.base("serve", argv) | {
        **_conditions(args, dataset, target, items, goodput_ms),
        **labels,
        **figures,
        **({} if steps is None else steps.record()),
        **({"kinds": kinds} if kinds else {}),
        "ttft_ms": figures.get("median_ttft_ms"),
        "tpot_ms": figures.get("median_tpot_ms"),
        "output_tokens_per_s": figures["output_throughput"],
        "max_lag_ms": 1e3 * max(one.lag_s for one in timelines),
        "client_cpu_share": cpu_s / duration_s,
        "errors": dict(errors),
    }
    print(report.serving_table(result, names, kinds))
    if steps is not None:
        print(f"Steps: {steps}")
    for error, count in errors.most_common(_NUM_SHOWN_ERRORS):
        say(f"failed: {count} x {error}")
    if cpu_s > _BUSY_SHARE * duration_s:
        say(f"the load generator itself used {100 * cpu_s / duration_s:.0f} % of a core: times may hold its own delays")
    if args.save_detailed:
        result |= _details(timelines)
    if path is not None:
        report.write(path, result, args.append_result)
        say(f"written: {path}")
    return 0 if figures["completed"] else 1


def _conditions(
    args: ServeArgs, dataset: DatasetArgs, target: Target, items: list[WorkItem], goodput_ms: dict[str, float]
) -> dict[str, Any]:
    """What was asked, of whom and by whom, for the record."""
    return {
        "device": None,  # the server does not say: --metadata device=NAME
        "client": record.cpu_name(),
        "label": args.label or args.backend,
        "backend": args.backend,
        "endpoint_type": args.backend,
        "base_url": target.base_url,
        "model_id": report.model_name(target.model),
        "dataset_name": dataset.dataset_name,
        "dataset_flags": changed_flags(dataset),
        "shape": describe(items),
        "seed": args.seed,
        "num_prompts": len(items),
        "request_rate": args.request_rate if np.isfinite(args.request_rate) else "inf",
        "burstiness": args.burstiness,
        "ramp_up_strategy": args.ramp_up_strategy,
        "max_concurrency": args.max_concurrency,
        "ignore_eos": args.ignore_eos,
        "goodput_limits_ms": goodput_ms,
    }


def _by_kind(
    items: list[WorkItem],
    timelines: Sequence[metrics.Timeline],
    duration_s: float,
    percentiles: Sequence[float],
    goodput_ms: Mapping[str, float],
) -> dict[str, dict[str, float | None]]:
    """The figures of each kind of request by itself, where the dataset has several."""
    return {
        kind: metrics.summarise(
            [seen for item, seen in zip(items, timelines, strict=True) if item.kind == kind],
            duration_s,
            percentiles,
            goodput_ms,
        )
        for kind in kinds_of(items)
    }


def _trial(item: WorkItem, vocab_size: int, seed: int) -> WorkItem:
    """As long as a real request, of other tokens: the prefix cache must not know any request beforehand."""
    token_ids = random_ids(len(item.prompt_token_ids), vocab_size, np.random.default_rng([seed, 2]))
    return WorkItem(token_ids, item.num_output_tokens)


def find_target(args: ServeArgs, headers: Mapping[str, str]) -> Target:
    """The server and its model. Raises EngineError where none answers, ConfigError where it has no such model."""
    base_url = (args.base_url or f"http://{args.host}:{args.port}").rstrip("/").removesuffix("/v1")
    url = f"{base_url}/v1/models"
    deadline_s = time.monotonic() + args.ready_check_timeout_sec
    while True:
        try:
            response = httpx.get(url, headers=dict(headers), timeout=30)
            response.raise_for_status()
            cards: list[dict[str, Any]] = response.json()["data"]
            break
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            if time.monotonic() >= deadline_s:
                reason = str(error) or type(error).__name__
                raise EngineError(f"no server answers at {url}: {reason.splitlines()[0]}") from error
        time.sleep(0.5)
    found = {str(card["id"]): card for card in cards}
    model = args.model or next(iter(found), None)
    if model is None:
        raise EngineError(f"{url} lists no model: name one with --model")
    if found and model not in found:
        raise ConfigError(f"model {model!r} is not served at {base_url}; there is {', '.join(found)}")
    card = found.get(model, {})
    return Target(base_url, model, str(card.get("root") or model), card.get("max_model_len"))


class TokenSource:
    """The vocabulary that prompts are drawn from, and a tokenizer where text is needed."""

    def __init__(self, args: ServeArgs, target: Target) -> None:
        self._args = args
        self._target = target
        self._tokenizer: Any = None
        self.vocab_size = args.vocab_size or read_vocab_size(self._directory())

    def _directory(self) -> str:
        """Of a checkpoint or tokenizer: the one that is named, else one of the names that the server tells."""
        if self._args.tokenizer:
            return _resolved(self._args.tokenizer)
        names = (self._target.root, self._target.model)
        if DEMO_MODEL_NAME in names:
            return str(demo_checkpoint())
        for name in names:
            if Path(name).is_dir() or name.count("/") == 1:
                try:
                    return _resolved(name)
                except (CheckpointError, ConfigError) as error:
                    say(f"no tokenizer by the model's name: {error}")
        raise ConfigError(
            f"nothing tells the vocabulary of {self._target.model!r}: "
            "name a checkpoint directory with --tokenizer, or give --vocab-size"
        )

    def tokenizer(self) -> Any:
        if self._tokenizer is None:
            from jaxserve.text.tokenizer import Tokenizer  # transformers takes seconds: only where there is text

            self._tokenizer = Tokenizer.load(self._directory())
        return self._tokenizer

    @property
    def encode(self) -> Encode:
        tokenizer = self.tokenizer()
        return lambda text: tokenizer.encode(text, False)

    def text(self, token_ids: list[int]) -> str:
        return self.tokenizer().decode(token_ids, skip_special_tokens=True)


def _resolved(name: str) -> str:
    """A local directory as it is, a hub id fetched. Raises CheckpointError or ConfigError."""
    if Path(name).is_dir():
        return name
    from jaxserve.core.checkpoint import resolve_model_path  # brings transformers, as above

    return str(resolve_model_path(name, None, with_weights=False))


def make_request(args: ServeArgs, model: str, item: WorkItem, tokens: TokenSource) -> Prepared:
    """One request's body, encoded ahead of time so that sending costs nothing."""
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {"temperature": args.temperature, "max_tokens": item.num_output_tokens}
    if args.backend == "openai-chat":
        body["messages"] = [{"role": "user", "content": tokens.text(item.prompt_token_ids)}]
        del body["max_tokens"]
        body["max_completion_tokens"] = item.num_output_tokens
    else:
        body["prompt"] = item.prompt_token_ids
    if args.ignore_eos:
        body["ignore_eos"] = True
    return Prepared(json.dumps(body | (args.extra_body or {})).encode(), len(item.prompt_token_ids))


async def _measure(
    args: ServeArgs,
    target: Target,
    headers: dict[str, str],
    tokens: TokenSource,
    items: list[WorkItem],
    trial: WorkItem,
) -> tuple[list[metrics.Timeline], float, float, StepFigures | None]:
    """Timelines, wall seconds, the processor seconds that the load generator used, and the server's steps meanwhile."""
    requests = [make_request(args, target.model, item, tokens) for item in items]
    first = make_request(args, target.model, trial, tokens)
    times_s = _times(args, len(items))
    connections = min(args.max_concurrency or len(items), len(items))
    _allow_files(connections)
    url = target.base_url + (args.endpoint or _ENDPOINTS[args.backend])
    async with LoadGenerator(url, headers, connections, args.request_timeout_sec) as generator:
        seen = await generator.send(first)
        if seen.error is not None:
            raise EngineError(f"the first trial request failed: {seen.error}")
        if args.num_warmups:
            say(f"warming up with {args.num_warmups} requests")
            await run_load(generator, [first] * args.num_warmups, [0.0] * args.num_warmups, connections, lambda: None)
        say(f"{len(items)} requests to {url}, rate {args.request_rate:g}/s, burstiness {args.burstiness:g}")
        gc.collect()
        before = server_meter.read(target.base_url, headers)
        gc.freeze()  # no pause of our own may look like one of the server's
        with tqdm(total=len(items), disable=args.disable_tqdm, dynamic_ncols=True) as bar:
            cpu_s = time.process_time()
            timelines, duration_s = await run_load(generator, requests, times_s, args.max_concurrency, bar.update)
            cpu_s = time.process_time() - cpu_s
    after = None if before is None else server_meter.read(target.base_url, headers)
    steps = None if before is None or after is None else figures_between(before, after)
    return timelines, duration_s, cpu_s, steps


def _times(args: ServeArgs, count: int) -> list[float]:
    if args.ramp_up_strategy is None:
        rates = arrivals.steady(count, args.request_rate)
    else:
        assert args.ramp_up_start_rps is not None and args.ramp_up_end_rps is not None, "checked before"
        rates = arrivals.ramp(count, args.ramp_up_strategy, args.ramp_up_start_rps, args.ramp_up_end_rps)
    # A stream of its own: the pattern of arrivals is the same whatever is asked.
    rng = np.random.default_rng([args.seed, 1])
    return arrivals.arrival_times(rates, args.burstiness, rng).tolist()


def _check(args: ServeArgs) -> None:
    if args.backend not in BACKENDS:
        raise ConfigError(f"backend is {args.backend!r}, it must be one of {', '.join(BACKENDS)}")
    if args.max_concurrency is not None and args.max_concurrency < 1:
        raise ConfigError(f"max_concurrency is {args.max_concurrency}, it must be at least 1")
    if args.ramp_up_strategy is not None:
        if args.ramp_up_start_rps is None or args.ramp_up_end_rps is None:
            raise ConfigError("ramp_up_strategy needs ramp_up_start_rps and ramp_up_end_rps")
        if np.isfinite(args.request_rate):
            raise ConfigError("request_rate and ramp_up_strategy exclude each other")
    _times(args, 2)  # says what is wrong with rates and burstiness before a server is asked


def _check_fits(items: list[WorkItem], target: Target) -> None:
    longest = max(item.num_tokens for item in items)
    if target.max_model_len is not None and longest > target.max_model_len:
        raise ConfigError(
            f"the longest request has {longest} tokens, prompt and output together, and {target.model!r} takes "
            f"{target.max_model_len}: ask for less, such as --input-len and --output-len"
        )


def read_pairs(name: str, texts: Sequence[str] | None) -> dict[str, str]:
    """KEY=VALUE texts as a dictionary. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise ConfigError(f"{name} {text!r}: it must be KEY=VALUE")
        found[key] = value
    return found


def _result_path(args: ServeArgs) -> Path | None:
    if args.output_json is not None:
        return Path(args.output_json)
    if not (args.save_result or args.append_result):
        return None
    name = args.result_filename
    if name is None:
        together = f"-concurrency{args.max_concurrency}" if args.max_concurrency is not None else ""
        model = (args.model or "model").rstrip("/").split("/")[-1]
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        name = f"{args.label or args.backend}-{args.request_rate}qps{together}-{model}-{now}.json"
    return Path(args.result_dir) / name


def _details(timelines: Sequence[metrics.Timeline]) -> dict[str, Any]:
    """Each request's own figures, in the order of the requests; times in seconds."""
    start_s = min(one.sent_s for one in timelines)
    return {
        "input_lens": [one.num_prompt_tokens for one in timelines],
        "output_lens": [one.num_output_tokens if one.error is None else 0 for one in timelines],
        "start_times": [one.sent_s - start_s for one in timelines],
        "ttfts": [one.ttft_s if one.chunk_s else None for one in timelines],
        "itls": [one.itl_s for one in timelines],
        "request_errors": [one.error or "" for one in timelines],
    }


def _allow_files(connections: int) -> None:
    """As many open files as connections need, where the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
