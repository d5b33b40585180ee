"""`--data-parallel-size 2` over real HTTP, on the bundled demo model: one server for all tests here."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from server_process import ENGINE, ServerProcess, metric

from jaxserve import LLM, SamplingParams

NUM_ROWS, NUM_QUEUED = 2, 8  # few rows: few programs to compile
MODEL: dict[str, Any] = {"max_model_len": 256, "kv_cache_memory_bytes": 2**25, "max_num_seqs": NUM_ROWS}
NUM_TOKENS = 32  # compared; one engine alone rounds by batch, and of 200 tokens a near tie may fall otherwise
NUM_LONG = 200  # enough that a replica is killed in the middle of them
PROMPTS = [f"Tell me about number {index}." for index in range(12)]


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled_demo")


@pytest.fixture(scope="module")
def fleet(cache_dir: Path) -> Iterator[ServerProcess]:
    engine = {
        **MODEL,
        "compilation_cache_dir": str(cache_dir),
        "data_parallel_size": 2,
        "max_num_queued_reqs": NUM_QUEUED,
    }
    process = ServerProcess(engine)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture(scope="module")
def wanted(fleet: ServerProcess, cache_dir: Path) -> list[list[int]]:
    """What one engine makes of the prompts."""
    params = [SamplingParams(temperature=1, seed=index, max_tokens=NUM_TOKENS, ignore_eos=True) for index in range(12)]
    args: dict[str, Any] = {**ENGINE, **MODEL, "compilation_cache_dir": str(cache_dir)}
    with LLM(**args) as one:
        return [output.outputs[0].token_ids for output in one.generate(PROMPTS, params, use_tqdm=False)]


def ask(server: ServerProcess, prompt: str, **fields: Any) -> httpx.Response:
    body = {"prompt": prompt, "max_tokens": 4, "ignore_eos": True, "temperature": 0, **fields}
    return httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)


def ask_all(server: ServerProcess, num_tokens: int = NUM_TOKENS) -> list[httpx.Response]:
    def one(index: int) -> httpx.Response:
        return ask(server, PROMPTS[index], seed=index, temperature=1, max_tokens=num_tokens, skip_special_tokens=False)

    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(one, range(12)))


def by_engine(server: ServerProcess, name: str) -> list[float]:
    page = server.metrics()
    return [metric(page, f"jaxserve:{name}", engine=str(index)) for index in range(2)]


def engine_pids(server: ServerProcess) -> list[int]:
    return sorted(child.pid for child in psutil.Process(server.process.pid).children())


def wait_up(server: ServerProcess, num: int) -> None:
    deadline_s = time.monotonic() + 60
    while sum(by_engine(server, "replica_up")) != num:
        assert time.monotonic() < deadline_s, server.log
        time.sleep(0.05)


def decoded(server: ServerProcess, wanted: list[list[int]]) -> list[str]:
    with httpx.Client(base_url=server.url) as client:
        return [client.post("/detokenize", json={"tokens": ids}).json()["prompt"] for ids in wanted]


def test_two_replicas_give_what_one_engine_gives(fleet: ServerProcess, wanted: list[list[int]]) -> None:
    before = by_engine(fleet, "steps_total")
    answers = ask_all(fleet)
    texts = [answer.raise_for_status().json()["choices"][0]["text"] for answer in answers]
    assert texts == decoded(fleet, wanted)
    assert all(after > one for one, after in zip(before, by_engine(fleet, "steps_total"), strict=True))


def test_equal_prefixes_meet_on_one_replica(fleet: ServerProcess) -> None:
    stems = [f"Story {name}: " + "once there was a small dog. " * 5 for name in "ab"]
    homes: list[set[int]] = [set(), set()]
    cached: list[int] = []
    for number in range(5):
        for index, stem in enumerate(stems):
            before = by_engine(fleet, "prefix_cache_queries_total")
            usage = ask(fleet, f"{stem} Part {number}").raise_for_status().json()["usage"]
            fleet.wait_idle()
            after = by_engine(fleet, "prefix_cache_queries_total")
            homes[index] |= {engine for engine in range(2) if after[engine] > before[engine]}
            if number:
                cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert [len(home) for home in homes] == [1, 1]
    assert min(cached) >= 2 * ENGINE["page_size"]


def test_health_and_metrics_tell_of_each(fleet: ServerProcess) -> None:
    answer = httpx.get(f"{fleet.url}/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "num_replicas": 2, "num_replicas_up": 2}
    assert httpx.get(f"{fleet.url}/ready").status_code == 200
    fleet.wait_idle()
    page = fleet.metrics()
    assert metric(page, "jaxserve:replica_up") == 2
    assert by_engine(fleet, "replica_restarts_total") == [0, 0]
    assert by_engine(fleet, "replica_requests") == [0, 0]
    for name in ("jaxserve:num_requests_waiting", "vllm:num_requests_waiting", "jaxserve:num_waiting_tokens"):
        assert metric(page, name, engine="queue") == 0
    assert metric(page, "vllm_kv_cache_blocks_total") == metric(page, "jaxserve:kv_pages_total") > 0
    assert metric(page, "jaxserve:kv_pages_total", engine="0") == metric(page, "jaxserve:kv_pages_total") / 2


def test_one_queue_with_one_limit(fleet: ServerProcess) -> None:
    """Nothing leaves while both are stopped: of 30 requests as many stay as rows and queue hold together."""
    replicas = [psutil.Process(pid) for pid in engine_pids(fleet)]
    for replica in replicas:
        replica.suspend()
    with ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(ask, fleet, f"{index}") for index in range(30)]
        deadline_s = time.monotonic() + 20
        while sum(one.done() for one in asked) < 30 - 2 * NUM_ROWS - NUM_QUEUED and time.monotonic() < deadline_s:
            time.sleep(0.02)
        for replica in replicas:
            replica.resume()
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert len(refused) == 30 - 2 * NUM_ROWS - NUM_QUEUED
    assert all(answer.json()["error"]["code"] == "queue_full" for answer in refused)
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert {answer.status_code for answer in answers} == {200, 503}
    fleet.wait_idle()


def test_clients_that_leave_free_queue_and_replicas(fleet: ServerProcess) -> None:
    def leave(index: int) -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{fleet.url}/v1/completions",
                json={"prompt": PROMPTS[index] * 2, "max_tokens": 220, "ignore_eos": True},
                timeout=0.15,
            )

    with ThreadPoolExecutor(12) as pool:  # as many as rows and queue hold
        list(pool.map(leave, range(12)))
    fleet.wait_idle(3.0)
    assert by_engine(fleet, "replica_requests") == [0, 0]


def test_a_killed_replica_costs_its_own_begun_requests_only(fleet: ServerProcess, wanted: list[list[int]]) -> None:
    texts = decoded(fleet, wanted)
    victim, survivor = engine_pids(fleet)
    answers: list[httpx.Response] = []
    load = threading.Thread(target=lambda: answers.extend(ask_all(fleet, NUM_LONG)))
    load.start()
    while not all(by_engine(fleet, "num_requests_running")):
        time.sleep(0.002)
    os.kill(victim, signal.SIGKILL)
    wait_up(fleet, 1)
    health = httpx.get(f"{fleet.url}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "degraded"
    load.join(60)
    assert len(answers) == 12
    lost = [answer for answer in answers if answer.status_code != 200]
    for index, answer in enumerate(answers):
        if answer.status_code == 200:
            assert answer.json()["choices"][0]["text"].startswith(texts[index])
        else:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
            assert answer.headers["retry-after"] == "1"
    assert 0 < len(lost) <= NUM_ROWS + 1
    wait_up(fleet, 2)
    assert sum(by_engine(fleet, "replica_restarts_total")) == 1
    assert survivor in engine_pids(fleet)
    assert victim not in engine_pids(fleet), "neither alive nor a zombie"
    assert len(engine_pids(fleet)) == 2
    assert [one.raise_for_status().json()["choices"][0]["text"] for one in ask_all(fleet)] == texts


def test_while_none_is_up_requests_wait(fleet: ServerProcess, wanted: list[list[int]]) -> None:
    for pid in engine_pids(fleet):
        os.kill(pid, signal.SIGKILL)
    wait_up(fleet, 0)
    answer = httpx.get(f"{fleet.url}/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "replica_lost")
    assert httpx.get(f"{fleet.url}/ready").status_code == 503
    assert ask(fleet, "Anybody there?").status_code == 200
    wait_up(fleet, 2)
    assert [one.json()["choices"][0]["text"] for one in ask_all(fleet)] == decoded(fleet, wanted)


def test_the_server_leaves_nobody_behind(fleet: ServerProcess) -> None:
    pids = engine_pids(fleet)
    assert len(pids) == 2
    fleet.process.send_signal(signal.SIGTERM)
    assert fleet.process.wait(20) == 0
    assert not any(psutil.pid_exists(pid) for pid in pids)
