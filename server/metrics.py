"""Prometheus metrics: `jaxserve:` names first, and the names that existing dashboards read as copies.

Histograms and counters are kept once and written out under each name; gauges are read from the
engine when Prometheus asks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from jaxserve.engine.messages import EngineInfo, SchedulerStats

_TTFT_S = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1,
    2.5,
    5,
    7.5,
    10,
    20,
    40,
    80,
    160,
    640,
    2560,
)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 10, 40, 80)
_LATENCY_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_NUM_SAMPLES = (1, 2, 5, 10, 20, 50, 100)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# name without prefix: help
_GAUGES = {
    "num_requests_running": "Requests in the running batch.",
    "num_requests_waiting": "Requests waiting for a place in it.",
    "kv_cache_usage_perc": "Share of the KV pool's pages in use, 0 to 1.",
}
_COUNTERS = {
    "prefix_cache_queries": "Prompt tokens looked up in the prefix cache.",
    "prefix_cache_hits": "Prompt tokens read from the prefix cache.",
    "num_preemptions": "Times a running request lost its pages and was recomputed.",
    "corrupted_requests": "Requests ended because their logits were not finite.",
    "estimated_flops_per_gpu": "Floating-point operations that steps needed at least.",
    "estimated_read_bytes_per_gpu": "Bytes of weights, keys and values that steps had to read.",
    "estimated_write_bytes_per_gpu": "Bytes of keys and values that steps wrote.",
}


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One finished request: counts in tokens, times in seconds (None where unknown)."""

    num_prompt_tokens: int
    num_output_tokens: int
    num_samples: int
    max_tokens: int | None
    e2e_s: float
    ttft_s: float | None
    queue_s: float | None
    prefill_s: float | None
    finish_reasons: tuple[str, ...]


class ServerMetrics:
    """Counts what this server sees. One instance a server; nothing is registered globally."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._families: list[Counter | Histogram] = []
        label = {"model_name": model_name}
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of finished requests.").labels(**label)
        self.generation_tokens = self._counter("generation_tokens", "Tokens generated.").labels(**label)
        self._success = self._counter("request_success", "Finished samples by reason.", "finished_reason")
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", _TTFT_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Gap between two tokens of a stream.", _ITL_S)
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to last token.", _LATENCY_S)
        self._queue = self._histogram("request_queue_time_seconds", "Arrival to admission.", _LATENCY_S)
        self._prefill = self._histogram("request_prefill_time_seconds", "Admission to first token.", _LATENCY_S)
        self._decode = self._histogram("request_decode_time_seconds", "First to last token.", _LATENCY_S)
        self._num_prompt = self._histogram("request_prompt_tokens", "Prompt tokens a request.", _TOKENS)
        self._num_output = self._histogram("request_generation_tokens", "Generated tokens a request.", _TOKENS)
        self._n = self._histogram("request_params_n", "Samples asked for.", _NUM_SAMPLES)
        self._max_tokens = self._histogram("request_params_max_tokens", "max_tokens asked for.", _TOKENS)
        self.requests = Counter(
            "jaxserve:requests", "Requests by outcome.", ["model_name", "status", "error_type"], registry=None
        )
        for status in ("success", "abort"):  # there from the start, so that rates have a zero to begin with
            self.requests.labels(model_name, status, "")
        self.http_requests = Counter("http_requests", "HTTP requests.", ["method", "handler", "status"], registry=None)
        self.http_seconds = Histogram(
            "http_request_duration_seconds", "HTTP time to the answer's end.", ["method", "handler"], registry=None
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        counter = Counter(f"jaxserve:{name}", text, ["model_name", *labels], registry=None)
        self._families.append(counter)
        return counter

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"jaxserve:{name}", text, ["model_name"], buckets=buckets, registry=None)
        self._families.append(family)
        return family.labels(model_name=self.model_name)

    def note_gap(self, gap_s: float) -> None:
        """Time between two outputs of one streamed sample."""
        self._itl.observe(gap_s)

    def note_finished(self, record: RequestRecord) -> None:
        self.prompt_tokens.inc(record.num_prompt_tokens)
        self.generation_tokens.inc(record.num_output_tokens)
        for reason in record.finish_reasons:
            self._success.labels(model_name=self.model_name, finished_reason=reason).inc()
        self._e2e.observe(record.e2e_s)
        self._num_prompt.observe(record.num_prompt_tokens)
        self._num_output.observe(record.num_output_tokens)
        self._n.observe(record.num_samples)
        if record.max_tokens is not None:
            self._max_tokens.observe(record.max_tokens)
        if record.ttft_s is not None:
            self._ttft.observe(record.ttft_s)
            self._decode.observe(record.e2e_s - record.ttft_s)
        if record.queue_s is not None:
            self._queue.observe(record.queue_s)
        if record.prefill_s is not None:
            self._prefill.observe(record.prefill_s)

    def note_request(self, status: str, error_type: str = "") -> None:
        """status: success, error or abort; error_type: the error's code or type."""
        self.requests.labels(self.model_name, status, error_type).inc()

    def render(self, info: EngineInfo | None, stats: SchedulerStats | None) -> bytes:
        """The page that Prometheus reads."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Page(self._all(info, stats)))
        return generate_latest(registry)

    def _all(self, info: EngineInfo | None, stats: SchedulerStats | None) -> Iterator[Metric]:
        for family in self._families:
            for metric in family.collect():
                yield metric
                yield _renamed(metric, metric.name.replace("jaxserve:", "vllm:"))
        for family in (self.requests, self.http_requests, self.http_seconds):
            yield from family.collect()
        yield from self._aliases()
        if info is not None:
            yield from _config_info(self.model_name, info)
            yield from _peaks(self.model_name, info)
        if stats is not None:
            yield from _engine_metrics(self.model_name, stats)

    def _aliases(self) -> Iterator[Metric]:
        """Names that published dashboards for older servers read."""
        requests = next(iter(self.requests.collect()))
        yield _renamed(requests, "vllm_requests")
        for family in self._families:
            metric = next(iter(family.collect()))
            if metric.name == "jaxserve:e2e_request_latency_seconds":
                yield _renamed(metric, "vllm_request_duration_seconds")
            if metric.name == "jaxserve:generation_tokens":
                yield _renamed(metric, "vllm_tokens_generated")


class _Page(Collector):
    def __init__(self, metrics: Iterator[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def _renamed(metric: Metric, name: str) -> Metric:
    copy = Metric(name, metric.documentation, metric.type)
    for sample in metric.samples:
        new_name = name + sample.name.removeprefix(metric.name)
        copy.samples.append(Sample(new_name, sample.labels, sample.value, sample.timestamp, sample.exemplar))
    return copy


def _config_info(model_name: str, info: EngineInfo) -> Iterator[Metric]:
    labels = {
        "model_name": model_name,
        "block_size": str(info.page_size),
        "num_gpu_blocks": str(info.num_pages),
        "page_size": str(info.page_size),
        "num_pages": str(info.num_pages),
        "cache_dtype": info.kv_cache_dtype,
    }
    for prefix in ("jaxserve:", "vllm:"):
        family = GaugeMetricFamily(f"{prefix}cache_config_info", "Shape of the KV pool.", labels=list(labels))
        family.add_metric(list(labels.values()), 1.0)
        yield family


def _engine_metrics(model_name: str, stats: SchedulerStats) -> Iterator[Metric]:
    """One series an engine, labelled with its index; the names of older dashboards carry the sums."""
    engines = [(str(one.index), one.stats) for one in stats.replicas] or [("0", stats)]
    waiting = {name: one.num_waiting for name, one in engines}
    waiting_tokens = {name: one.num_waiting_tokens for name, one in engines}
    if stats.replicas:  # what waits for whichever replica has room first
        waiting["queue"] = stats.num_waiting - sum(waiting.values())
        waiting_tokens["queue"] = stats.num_waiting_tokens - sum(waiting_tokens.values())

    def each(field: str) -> dict[str, float]:
        return {name: getattr(one, field) for name, one in engines}

    gauges = {
        "num_requests_running": each("num_running"),
        "num_requests_waiting": waiting,
        "kv_cache_usage_perc": {name: _usage(one) for name, one in engines},
    }
    counters = {
        "prefix_cache_queries": each("prefix_cache_queries"),
        "prefix_cache_hits": each("prefix_cache_hits"),
        "num_preemptions": each("num_preemptions"),
        "corrupted_requests": each("num_corrupted_requests"),
        "estimated_flops_per_gpu": each("step_flops"),
        "estimated_read_bytes_per_gpu": each("step_read_bytes"),
        "estimated_write_bytes_per_gpu": each("step_write_bytes"),
    }
    for prefix in ("jaxserve:", "vllm:"):
        for name, values in gauges.items():
            yield _by_engine(GaugeMetricFamily, model_name, prefix + name, _GAUGES[name], values)
        for name, values in counters.items():
            yield _by_engine(CounterMetricFamily, model_name, prefix + name, _COUNTERS[name], values)
    own = {
        "kv_pages_used": ("Pages held by requests.", each("num_used_pages")),
        "kv_pages_cached": ("Pages kept for reuse.", each("num_cached_pages")),
        "kv_pages_total": ("Pages in the pool.", each("num_pages")),
        "num_waiting_tokens": ("Prompt tokens waiting.", waiting_tokens),
        "device_memory_used_bytes": ("Device memory in use; 0 on a CPU.", each("device_memory_used_bytes")),
        "compilations_after_warmup": ("Should stay 0.", each("num_compilations_after_warmup")),
    }
    for name, (text, values) in own.items():
        yield _by_engine(GaugeMetricFamily, model_name, f"jaxserve:{name}", text, values)
    yield from _roofline(model_name, engines)
    yield from _replicas(model_name, stats)
    yield from _old_names(model_name, stats)


def _usage(stats: SchedulerStats) -> float:
    return stats.num_used_pages / stats.num_pages if stats.num_pages else 0.0


def _old_names(model_name: str, stats: SchedulerStats) -> Iterator[Metric]:
    values = {
        "vllm_active_requests": stats.num_running,
        "vllm_queue_size": stats.num_waiting,
        "vllm_kv_cache_usage_ratio": _usage(stats),
        "vllm_kv_cache_blocks_used": stats.num_used_pages,
        "vllm_kv_cache_blocks_total": stats.num_pages,
        "vllm_gpu_memory_used_bytes": stats.device_memory_used_bytes,
    }
    for name, value in values.items():
        yield _gauge(model_name, name, "The name older dashboards read.", value)


def _replicas(model_name: str, stats: SchedulerStats) -> Iterator[Metric]:
    """Of a fleet: who is up, and what each has been given."""
    if not stats.replicas:
        return
    up: dict[str, float] = {str(one.index): one.is_up for one in stats.replicas}
    requests: dict[str, float] = {str(one.index): one.num_requests for one in stats.replicas}
    restarts: dict[str, float] = {str(one.index): one.num_restarts for one in stats.replicas}
    yield _by_engine(GaugeMetricFamily, model_name, "jaxserve:replica_up", "1 while it takes requests.", up)
    text = "Requests given to it and not ended."
    yield _by_engine(GaugeMetricFamily, model_name, "jaxserve:replica_requests", text, requests)
    text = "Times another process took its place."
    yield _by_engine(CounterMetricFamily, model_name, "jaxserve:replica_restarts", text, restarts)


def _peaks(model_name: str, info: EngineInfo) -> Iterator[Metric]:
    """What the device can do at most; left out where nobody knows."""
    peaks = {
        "device_peak_bytes_per_second": ("Bytes a second of the device's memory, by its vendor.", info.peak_bandwidth),
        "device_peak_flops_per_second": ("Operations a second of its matrix units, by its vendor.", info.peak_flops),
    }
    for name, (text, value) in peaks.items():
        if value is not None:
            yield _gauge(model_name, f"jaxserve:{name}", text, value)


def _roofline(model_name: str, engines: list[tuple[str, SchedulerStats]]) -> Iterator[Metric]:
    """The meter's counters: shares of the roofline and of each verdict are ratios of their rates."""
    seconds = CounterMetricFamily(
        "jaxserve:step_seconds",
        "Time of steps by what bound them: memory, compute, host; unknown without the device's peaks.",
        labels=["model_name", "engine", "bound"],
    )
    for engine, stats in engines:
        for bound in ("memory", "compute", "host", "unknown"):
            seconds.add_metric([model_name, engine, bound], getattr(stats, f"step_{bound}_s"))
    yield seconds
    counters = {
        "steps": ("Steps of the engine.", "num_steps"),
        "step_tokens": ("Tokens that steps computed, prompts and outputs.", "num_step_tokens"),
        "step_floor_seconds": ("The least time the steps could take on this device.", "step_floor_s"),
        "host_gap_seconds": ("Time with work in which the device had no step.", "host_gap_s"),
    }
    for name, (text, field) in counters.items():
        values: dict[str, float] = {engine: getattr(stats, field) for engine, stats in engines}
        yield _by_engine(CounterMetricFamily, model_name, f"jaxserve:{name}", text, values)


def _by_engine(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    model_name: str,
    name: str,
    text: str,
    values: Mapping[str, float],
) -> Metric:
    """values: by the label `engine`."""
    family = kind(name, text, labels=["model_name", "engine"])
    for engine, value in values.items():
        family.add_metric([model_name, engine], value)
    return family


def _gauge(model_name: str, name: str, text: str, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["model_name"])
    family.add_metric([model_name], value)
    return family
