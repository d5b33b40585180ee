"""Flags of the `jaxserve bench` commands; names and defaults as vLLM's bench has them. Loads nothing heavy."""

# ruff: noqa: RUF009 (one flag a line, with its help; `arg` makes a dataclass field)

import math
from dataclasses import dataclass
from typing import Any

from jaxserve.core.config import arg

DATASETS = ("random", "sharegpt", "prefix_repetition", "long", "mixed")
BACKENDS = ("openai", "openai-chat")
METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass
class DatasetArgs:
    """What is asked: prompts as token ids, each with the number of tokens that its output must have."""

    dataset_name: str = arg(
        "random",
        "random, sharegpt (lengths of conversations), prefix_repetition (shared prefixes), long, or mixed (sharegpt "
        "lengths with some long prompts among them, reported apart).",
        "dataset",
    )
    dataset_path: str | None = arg(
        None, "sharegpt: a local ShareGPT JSON file; lognormal lengths and random tokens if unset.", "dataset"
    )
    num_prompts: int = arg(1000, "Requests in all.", "dataset")
    input_len: int | None = arg(None, "Prompt tokens, whatever the dataset's own flag says.", "dataset")
    output_len: int | None = arg(None, "Output tokens, whatever the dataset's own flag says.", "dataset")
    random_input_len: int = arg(1024, "random: prompt tokens.", "dataset")
    random_output_len: int = arg(128, "random: output tokens.", "dataset")
    random_range_ratio: float = arg(
        0.0, "random: lengths are drawn evenly from length * (1 - ratio) to length * (1 + ratio).", "dataset"
    )
    random_prefix_len: int = arg(0, "random: tokens that all prompts begin with, on top of their length.", "dataset")
    sharegpt_input_len: float = arg(202.0, "sharegpt without a file: mean prompt tokens, before clipping.", "dataset")
    sharegpt_output_len: float = arg(179.0, "sharegpt without a file: mean output tokens, before clipping.", "dataset")
    sharegpt_input_sigma: float = arg(1.1, "sharegpt without a file: spread of log prompt lengths.", "dataset")
    sharegpt_output_sigma: float = arg(0.8, "sharegpt without a file: spread of log output lengths.", "dataset")
    prefix_repetition_prefix_len: int = arg(256, "prefix_repetition: shared tokens.", "dataset")
    prefix_repetition_suffix_len: int = arg(256, "prefix_repetition: a prompt's own tokens.", "dataset")
    prefix_repetition_num_prefixes: int = arg(10, "prefix_repetition: different prefixes.", "dataset")
    prefix_repetition_output_len: int = arg(128, "prefix_repetition: output tokens.", "dataset")
    long_input_len: int = arg(32768, "long: prompt tokens.", "dataset")
    long_output_len: int = arg(256, "long: output tokens.", "dataset")
    mixed_long_share: float = arg(
        0.1, "mixed: share of long prompts; the other lengths are sharegpt's, without a file.", "dataset"
    )
    mixed_long_input_len: int = arg(
        8192, "mixed: prompt tokens of a long one; all lengths shrink alike where the model takes less.", "dataset"
    )
    mixed_long_output_len: int = arg(64, "mixed: output tokens of a long one.", "dataset")


@dataclass
class ServeArgs:
    """Load on a running server."""

    base_url: str | None = arg(None, "Server, such as http://127.0.0.1:8000; wins over host and port.", "server")
    host: str = arg("127.0.0.1", "Server's address.", "server")
    port: int = arg(8000, "Server's port.", "server")
    backend: str = arg(
        "openai", "openai (completions, prompts as token ids) or openai-chat (prompts as text).", "server"
    )
    endpoint: str | None = arg(None, "Path on the server; the backend's own if unset.", "server")
    model: str | None = arg(None, "Model to ask for; the server's first if unset.", "server")
    tokenizer: str | None = arg(
        None, "Directory or hub id that tells the vocabulary and makes text; the model's own if unset.", "server"
    )
    vocab_size: int | None = arg(None, "Ids of random prompts are below this; the tokenizer's if unset.", "server")
    header: list[str] | None = arg(None, "KEY=VALUE sent with each request.", "server", several=True)
    api_key: str | None = arg(None, "Sent as a bearer token.", "server")
    extra_body: dict[str, Any] | None = arg(None, "JSON object laid over each request's body.", "server")
    ready_check_timeout_sec: float = arg(0.0, "Wait this long for the server to answer.", "server")
    request_timeout_sec: float = arg(600.0, "A request fails after this long without a byte.", "server")

    request_rate: float = arg(math.inf, "Requests a second; inf sends all at once.", "load")
    burstiness: float = arg(
        1.0, "Shape of the gamma gaps between requests: 1 is Poisson, less is burstier, more is even.", "load"
    )
    ramp_up_strategy: str | None = arg(None, "linear or exponential growth of the rate over the requests.", "load")
    ramp_up_start_rps: float | None = arg(None, "Rate at the first request.", "load")
    ramp_up_end_rps: float | None = arg(None, "Rate at the last request.", "load")
    max_concurrency: int | None = arg(None, "Requests under way at most; others wait here, unsent.", "load")
    num_warmups: int = arg(0, "Requests before the measurement, besides the first trial one.", "load")
    seed: int = arg(0, "Of prompts, lengths and arrivals.", "load")
    temperature: float = arg(0.0, "Sent with each request.", "load")
    ignore_eos: bool = arg(False, "Ask for outputs of full length, whatever the model says.", "load")

    percentile_metrics: str = arg("ttft,tpot,itl,e2el", "Which of ttft, tpot, itl, e2el to report.", "report")
    metric_percentiles: str = arg("99", "Percentiles to report, such as 50,90,99.", "report")
    goodput: list[str] | None = arg(
        None,
        "Limits in ms, such as ttft:1000 tpot:50 e2el:9000: counts the requests that meet all.",
        "report",
        several=True,
    )
    save_result: bool = arg(False, "Write the result as JSON.", "report")
    save_detailed: bool = arg(False, "With each request's times and lengths in it.", "report")
    append_result: bool = arg(False, "Add a line to the file instead of replacing it.", "report")
    result_dir: str = arg(".", "Where save_result writes.", "report")
    result_filename: str | None = arg(None, "File name; made of backend, rate, model and time if unset.", "report")
    output_json: str | None = arg(None, "Write the result to this file.", "report")
    metadata: list[str] | None = arg(
        None, "KEY=VALUE put into the result, such as device=H200.", "report", several=True
    )
    label: str | None = arg(None, "Name of this run in the result; the backend if unset.", "report")
    disable_tqdm: bool = arg(False, "No progress bar.", "report")


@dataclass
class LatencyArgs:
    """One batch of equal requests, again and again."""

    input_len: int = arg(32, "Tokens of each prompt.", "benchmark")
    output_len: int = arg(128, "Tokens of each output.", "benchmark")
    batch_size: int = arg(8, "Requests in the batch.", "benchmark")
    num_iters_warmup: int = arg(10, "Batches before the measurement.", "benchmark")
    num_iters: int = arg(30, "Batches measured.", "benchmark")
    itl_slope: bool = arg(
        False, "Also how the gap between tokens grows with the context, from one more batch.", "benchmark"
    )
    disable_detokenize: bool = arg(False, "Make no text of the tokens.", "benchmark")
    output_json: str | None = arg(None, "Write the result to this file.", "benchmark")


@dataclass
class ThroughputArgs:
    """All requests of a dataset through `LLM`, all at once."""

    num_iters: int = arg(1, "Passes measured; the figures are those of the median one.", "benchmark")
    num_warmups: int = arg(8, "Requests before the measurement.", "benchmark")
    disable_detokenize: bool = arg(False, "Make no text of the tokens.", "benchmark")
    output_json: str | None = arg(None, "Write the result to this file.", "benchmark")
    disable_tqdm: bool = arg(False, "No progress bar.", "benchmark")


@dataclass
class StartupArgs:
    """Fresh processes, each from its start to the first token."""

    num_iters_cold: int = arg(3, "Starts with an empty cache of compiled steps.", "benchmark")
    num_iters_warmup: int = arg(1, "Starts that fill the cache for the warm ones.", "benchmark")
    num_iters_warm: int = arg(3, "Starts with that cache.", "benchmark")
    output_json: str | None = arg(None, "Write the result to this file.", "benchmark")


@dataclass
class MultihostArgs:
    """A model's steps over several meshes."""

    tensor_parallel_sizes: list[str] | None = arg(
        None, "Devices of each mesh; powers of two up to all that there are if unset.", "benchmark", several=True
    )
    batch_size: int = arg(32, "Rows of a decode step.", "benchmark")
    context_len: int = arg(1024, "Tokens that each row of a decode step sees.", "benchmark")
    prompt_len: int = arg(1024, "Tokens of the prompt of a prompt step.", "benchmark")
    num_steps: int = arg(20, "Steps of one run, back to back.", "benchmark")
    num_iters: int = arg(5, "Runs; the median counts.", "benchmark")
    output_json: str | None = arg(None, "Write the result to this file.", "benchmark")
    output_svg: str | None = arg(None, "Draw tokens/s over devices into this file.", "benchmark")

    simulate: bool = arg(
        False, "Predict instead: compile for devices that are not there, and add up assumed links.", "simulation"
    )
    simulate_device: str = arg("h200", "Device to predict for: h200 or h100.", "simulation")
    devices_per_host: int = arg(8, "Devices of a host; more lie on several.", "simulation")
    peak_share: float = arg(0.8, "Share of the device's peaks that kernels are taken to reach.", "simulation")
    link_gbps: float = arg(450.0, "GB/s that a device sends to others of its host (NVLink 4).", "simulation")
    link_start_us: float = arg(10.0, "Microseconds a collective takes to start within a host.", "simulation")
    hosts_link_gbps: float = arg(50.0, "GB/s that a device sends to other hosts (400 Gb/s).", "simulation")
    hosts_link_start_us: float = arg(30.0, "Microseconds a collective takes to start across hosts.", "simulation")
