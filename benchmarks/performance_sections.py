"""What docs/performance.md shows of kernels and of whole engines: one table a benchmark."""

import re
from collections.abc import Callable
from typing import Any

from benchmarks.performance_tables import Record, Table, model_name

IMPLEMENTATIONS = ("mosaic_gpu", "jax_triton", "cudnn", "xla")  # kernels of one case stand together, in this order


def _number(name: str, digits: int = 0, factor: float = 1.0) -> Callable[[Record], str]:
    """The record's figure, empty where it has none."""

    def show(record: Record) -> str:
        value = record.get(name)
        return "" if value is None else f"{factor * value:.{digits}f}"

    return show


def _text(name: str) -> Callable[[Record], str]:
    return lambda record: str(record.get(name, ""))


def _error(record: Record) -> str:
    return f"{record['max_error']:.1e}"


def _case_order(record: Record) -> tuple[Any, ...]:
    """By the case's numbers, equal lengths before ragged ones, implementations together."""
    name = record["implementation"]
    place = IMPLEMENTATIONS.index(name) if name in IMPLEMENTATIONS else len(IMPLEMENTATIONS)
    return record["case"].endswith("r"), [int(number) for number in re.findall(r"\d+", record["case"])], place, name


def _kernel_group(record: Record) -> str:
    shape = ", ".join(f"{name} {value}" for name, value in record["shape"].items() if name != "layers")
    pool_dtype = record.get("pool_dtype", record["dtype"])
    pool = "" if pool_dtype == record["dtype"] else f", over a pool of {pool_dtype}"
    return f", {record['dtype']}, {shape}{pool}"


def _roofline(record: Record) -> str:
    """The floor's share of a step, and what bound most of the time."""
    fraction, verdict = record.get("floor_fraction"), record.get("verdict")
    return "" if fraction is None else f"{100 * fraction:.0f} %, {verdict}"


def _lengths(kind: str = "") -> Callable[[Record], str]:
    """Mean tokens in and out."""

    def show(record: Record) -> str:
        shape, prefix = record["shape"], f"{record['kind']}_" if "kind" in record else kind
        if "input_len" in shape:
            return f"{shape['input_len']} / {shape['output_len']}"
        return f"{shape[f'{prefix}input_mean']:.0f} / {shape[f'{prefix}output_mean']:.0f}"

    return show


def _slope(record: Record) -> str:
    """Nanoseconds a token of context, which are 10^-6 ms."""
    slope = record.get("itl_slope_ms_per_token")
    return "" if slope is None else f"{1e6 * slope:.1f}"


def _dataset(record: Record) -> str:
    """Its name, and how much is shared where that is what it is about."""
    name, flags = record["dataset_name"], record.get("dataset_flags", {})
    said = [f"{key.removeprefix(f'{name}_')} {flags[key]}" for key in sorted(flags) if key.startswith("prefix_rep")]
    return ", ".join([name, *said])


def _prefix_hits(record: Record) -> str:
    """Share of the prompt tokens that the prefix cache held, of all passes."""
    if not record.get("enable_prefix_caching", True):
        return "off"
    return f"{record['prefix_cache_hits'] / max(record['prefix_cache_queries'], 1):.2f}"


def _model_group(record: Record) -> str:
    kv_dtype = record.get("kv_cache_dtype")
    pool = "" if kv_dtype in (None, record["dtype"]) else f", keys and values in {kv_dtype}"
    return f", {model_name(record)}, {record['dtype']}{pool}"


def _served(record: Record) -> str:
    name = record.get("label") or "jaxserve"
    return "jaxserve" if name in ("openai", "openai-chat") else name


def _kinds(record: Record) -> list[Record]:
    return [record | figures | {"kind": kind} for kind, figures in sorted(record.get("kinds", {}).items())]


def _starts(record: Record) -> list[Record]:
    """Cold and warm ones, a line each."""
    found: list[Record] = []
    for kind in ("cold", "warm"):
        prefix, suffix = f"avg_{kind}_", "_time"
        phases = {
            name[len(prefix) : -len(suffix)]: value
            for name, value in record.items()
            if name.startswith(prefix) and name.endswith(suffix)
        }
        if phases:
            found.append(record | phases | {"kind": kind, "starts": len(record[f"{kind}_total_times"])})
    return found


STEP = (
    "**Step** is the time from one step's results to the next one's, **of the floor** the share of it "
    "that its bytes and operations need at the vendor's peaks, and what bound most of the time: memory, "
    "compute, or host (the floor is under half of the time: launches, the host, or kernels far from their "
    "limits)."
)

TABLES = (
    Table(
        "kernels/decode",
        "Decode attention on a GPU",
        "`jaxserve bench kernels --case ROWSxCONTEXT`: one query a row over a paged pool with a fragmented "
        "table, through several pools in turn so that no cache helps, everything included that a layer "
        "launches. GB/s counts keys and values once; the copy is device to device, bytes read plus bytes "
        "written, in the same run: a share above 1 says that reading alone went faster. An r marks lengths "
        "between half the context and the whole. FlashInfer's times, of other runs: "
        "[profile-h200.md](profile-h200.md).",
        {
            "rows x context": _text("case"),
            "implementation": _text("implementation"),
            "#us a layer": _number("median_ms", 1, 1e3),
            "#GB/s": _number("gbps"),
            "#of the copy": _number("bandwidth_fraction", 3),
            "#copy GB/s": _number("copy_gbps"),
            "#spread": _number("spread", 2),
            "#largest error": _error,
        },
        _kernel_group,
        _case_order,
    ),
    Table(
        "kernels/prefill",
        "Prompt chunks on a GPU",
        "`jaxserve bench kernels --case CHUNK@CONTEXT`: the last CHUNK queries of a row over its CONTEXT "
        "tokens of a paged pool in random order, causal, planning included. TFLOP/s counts the pairs of a "
        "query and a key that it sees; the matrix rate is that of a product of two 8,192 x 8,192 bfloat16 "
        "matrices in the same run. `cudnn` is cuDNN through `jax.nn.dot_product_attention`, over plain arrays "
        "without pages.",
        {
            "chunk@context": _text("case"),
            "implementation": _text("implementation"),
            "#us": _number("median_ms", 0, 1e3),
            "#TFLOP/s": _number("tflops"),
            "#of the matrix rate": _number("matmul_fraction", 3),
            "#matrix rate": _number("matmul_tflops"),
            "#spread": _number("spread", 2),
            "#largest error": _error,
        },
        _kernel_group,
        _case_order,
    ),
    Table(
        "kernels/sampling",
        "Top-k and top-p on a GPU",
        "`jaxserve bench kernels --kernel sampling`: which tokens of each row's float32 logits are kept. GB/s "
        "counts the logits read once; the error is the probability kept or lost wrongly, against the version "
        "in XLA.",
        {
            "rows x vocabulary": _text("case"),
            "implementation": _text("implementation"),
            "#us": _number("median_ms", 1, 1e3),
            "#GB/s": _number("gbps"),
            "#of the copy": _number("bandwidth_fraction", 3),
            "#copy GB/s": _number("copy_gbps"),
            "#spread": _number("spread", 2),
            "#largest error": _error,
        },
        lambda record: f", top-k {record['top_k']}, top-p {record['top_p']:g}",
        _case_order,
    ),
    Table(
        "latency",
        "One batch of equal requests",
        "`jaxserve bench latency`: medians over the measured batches; spread is the slowest over the fastest. "
        f"{STEP} **Slope** is what a token of context adds to the gap between tokens.",
        {
            "rows": lambda record: str(record["shape"]["batch_size"]),
            "tokens in / out": _lengths(),
            "#batch ms": _number("median_ms", 1),
            "#spread": _number("spread", 2),
            "#TTFT ms": _number("ttft_ms", 1),
            "#TPOT ms": _number("tpot_ms", 2),
            "#output tokens/s": _number("output_tokens_per_s"),
            "#step ms": _number("step_ms", 2),
            "of the floor": _roofline,
            "#host gap us": _number("host_gap_us"),
            "#slope ns": _slope,
        },
        _model_group,
        lambda record: (record["shape"]["batch_size"], record["shape"]["input_len"], record["shape"]["output_len"]),
    ),
    Table(
        "throughput",
        "All requests at once, offline",
        f"`jaxserve bench throughput`: the median pass; spread is the slowest over the fastest. {STEP}",
        {
            "dataset": _dataset,
            "#requests": _number("num_requests"),
            "tokens in / out": _lengths(),
            "#requests/s": _number("requests_per_second", 1),
            "#output tokens/s": _number("output_tokens_per_s"),
            "#all tokens/s": _number("tokens_per_second"),
            "#spread": _number("spread", 2),
            "#prefix hits": _prefix_hits,
            "#step ms": _number("step_ms", 2),
            "of the floor": _roofline,
            "#host gap us": _number("host_gap_us"),
        },
        _model_group,
        lambda record: (record["dataset_name"], record["shape"]["input_mean"], record["shape"]["output_mean"]),
    ),
    Table(
        "serve",
        "A server under load",
        f"`jaxserve bench serve`: times as the client sees them, over HTTP. {STEP}",
        {
            "server": _served,
            "dataset": _dataset,
            "tokens in / out": _lengths(),
            "requests/s offered": _text("request_rate"),
            "#requests": _number("completed"),
            "#failed": _number("failed"),
            "#requests/s": _number("request_throughput", 2),
            "#output tokens/s": _number("output_throughput"),
            "#mean TTFT ms": _number("mean_ttft_ms", 1),
            "#p99 TTFT ms": _number("p99_ttft_ms", 1),
            "#mean TPOT ms": _number("mean_tpot_ms", 2),
            "#mean ITL ms": _number("mean_itl_ms", 2),
            "#p99 ITL ms": _number("p99_itl_ms", 2),
            "#goodput": _number("request_goodput", 2),
            "of the floor": _roofline,
        },
        lambda record: f", {model_name(record)}",
        lambda record: (record["dataset_name"], record["shape"]["input_mean"], float(record["request_rate"])),
    ),
    Table(
        "serve",
        "Short requests beside long ones",
        "The same runs of `jaxserve bench serve --dataset-name mixed`, each kind of request by itself: what a "
        "long prompt costs those that are being answered. Goodput counts requests a second within the limits "
        "of the run's command.",
        {
            "server": _served,
            "requests/s offered": _text("request_rate"),
            "kind": _text("kind"),
            "tokens in / out": _lengths(),
            "#requests": _number("completed"),
            "#mean TTFT ms": _number("mean_ttft_ms", 1),
            "#p99 TTFT ms": _number("p99_ttft_ms", 1),
            "#mean ITL ms": _number("mean_itl_ms", 2),
            "#p99 ITL ms": _number("p99_itl_ms", 2),
            "#goodput": _number("request_goodput", 2),
        },
        lambda record: f", {model_name(record)}",
        lambda record: (float(record["request_rate"]), record["kind"] == "long"),
        _kinds,
    ),
    Table(
        "startup",
        "From the start to the first token",
        "`jaxserve bench startup`: means over fresh processes, in seconds. Cold: no compiled step is there; "
        "warm: all are. Start is from imports done to a ready engine: reading the configuration, weights and "
        "compiling are parts of it.",
        {
            "start": _text("kind"),
            "#processes": _number("starts"),
            "#imports": _number("import", 2),
            "#configuration": _number("config", 2),
            "#weights": _number("weights", 2),
            "#compiling": _number("compilation", 2),
            "#start": _number("startup", 2),
            "#first token": _number("first_token", 2),
            "#total": _number("total", 2),
        },
        _model_group,
        lambda record: record["kind"],
        _starts,
    ),
)
