"""/metrics: the names dashboards read, and numbers that add up."""

import json
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess, metric

VLLM_NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:kv_cache_usage_perc",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:num_preemptions_total",
    "vllm:corrupted_requests_total",
    "vllm:estimated_flops_per_gpu_total",
    "vllm:estimated_read_bytes_per_gpu_total",
    "vllm:estimated_write_bytes_per_gpu_total",
    "vllm:cache_config_info",
    "vllm:time_to_first_token_seconds_count",
    "vllm:inter_token_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:request_queue_time_seconds_count",
    "vllm:request_prefill_time_seconds_count",
    "vllm:request_decode_time_seconds_count",
    "vllm:request_prompt_tokens_count",
    "vllm:request_generation_tokens_count",
    "vllm:request_params_n_count",
    "vllm:request_params_max_tokens_count",
]
OLD_NAMES = [
    "vllm_requests_total",
    "vllm_request_duration_seconds_count",
    "vllm_active_requests",
    "vllm_queue_size",
    "vllm_kv_cache_usage_ratio",
    "vllm_kv_cache_blocks_used",
    "vllm_kv_cache_blocks_total",
    "vllm_gpu_memory_used_bytes",
    "vllm_tokens_generated_total",
]


def ask(http: httpx.Client, **fields: Any) -> dict[str, Any]:
    body = {"model": "tiny", "prompt": "Count me", "max_tokens": 7, "ignore_eos": True, **fields}
    return http.post("/v1/completions", json=body).raise_for_status().json()["usage"]


def test_names_of_other_servers_are_there(server: ServerProcess, http: httpx.Client) -> None:
    ask(http)
    page = server.metrics()
    for name in VLLM_NAMES:
        metric(page, name, model_name="tiny")
        metric(page, name.replace("vllm:", "jaxserve:"), model_name="tiny")
    for name in OLD_NAMES:
        metric(page, name)


def test_the_pools_dtype_is_told(server: ServerProcess, http: httpx.Client) -> None:
    assert metric(server.metrics(), "vllm:cache_config_info", model_name="tiny", cache_dtype="float32") == 1


def test_counters_add_up(server: ServerProcess, http: httpx.Client) -> None:
    before = server.metrics()
    usage = ask(http, n=2, seed=1)
    after = server.metrics()

    def grown(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    for prefix in ("jaxserve:", "vllm:"):
        assert grown(f"{prefix}prompt_tokens_total") == usage["prompt_tokens"]
        assert grown(f"{prefix}generation_tokens_total") == usage["completion_tokens"] == 14
        assert grown(f"{prefix}e2e_request_latency_seconds_count") == 1
        assert grown(f"{prefix}time_to_first_token_seconds_count") == 1
        assert grown(f"{prefix}request_params_n_sum") == 2
    assert metric(after, "vllm:request_success_total", finished_reason="length") >= 2
    assert grown("jaxserve:requests_total", status="success") == 1
    assert grown("http_requests_total", handler="/v1/completions") == 1


def test_streams_count_gaps_between_tokens(server: ServerProcess, http: httpx.Client) -> None:
    before = metric(server.metrics(), "jaxserve:inter_token_latency_seconds_count")
    body = {"prompt": "Count me", "max_tokens": 40, "ignore_eos": True, "stream": True, "logprobs": 0}
    lines = http.post("/v1/completions", json=body).raise_for_status().text.splitlines()
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
    sizes = [len(choice["logprobs"]["tokens"]) for chunk in chunks for choice in chunk["choices"]]
    assert sum(sizes) == 40
    # Tokens that a fast engine hands over together with the first have no gap to measure.
    assert metric(server.metrics(), "jaxserve:inter_token_latency_seconds_count") - before == 40 - sizes[0] > 0


def test_clients_cannot_make_time_series(server: ServerProcess, http: httpx.Client) -> None:
    for index in range(5):
        http.get(f"/nowhere-{index}")
        http.request("GET", f"/v1/models/nobody-{index}")
    page = server.metrics()
    assert "nowhere" not in page
    assert "nobody" not in page
    assert metric(page, "http_requests_total", handler="other", status="404") >= 10


def test_the_page_parses_and_names_each_metric_once(server: ServerProcess) -> None:
    names = [family.name for family in text_string_to_metric_families(server.metrics())]
    assert len(names) == len(set(names))
    assert metric(server.metrics(), "jaxserve:kv_pages_total") > 0
    assert metric(server.metrics(), "jaxserve:compilations_after_warmup") == 0


def test_the_roofline_meter_counts_each_step(server: ServerProcess, http: httpx.Client) -> None:
    before = server.metrics()
    ask(http)
    after = server.metrics()

    def grown(name: str, **labels: str) -> float:
        return metric(after, name, **labels) - metric(before, name, **labels)

    assert grown("jaxserve:steps_total") >= 7
    assert grown("jaxserve:step_tokens_total") >= 7
    weights = grown("vllm:estimated_read_bytes_per_gpu_total") / grown("jaxserve:steps_total")
    assert weights > 1000
    assert grown("jaxserve:estimated_flops_per_gpu_total") > 0
    assert grown("jaxserve:estimated_write_bytes_per_gpu_total") > 0
    # No peaks are known of a CPU: time is counted, and no verdict is given.
    assert grown("jaxserve:step_seconds_total", bound="unknown") > 0
    assert grown("jaxserve:step_floor_seconds_total") == 0
    assert 0 <= grown("jaxserve:host_gap_seconds_total") <= grown("jaxserve:step_seconds_total", bound="unknown")
    assert "device_peak" not in after
