"""The engine process is killed: everybody is told, and the server ends with an error."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
from server_process import ServerProcess

LONG: dict[str, Any] = {"prompt": "Tell me everything", "ignore_eos": True, "max_tokens": 230}


def test_killed_engine_ends_streams_with_an_error_event(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server()
    started = threading.Barrier(5)
    ends: list[str] = []
    whole: list[httpx.Response] = []

    def read_stream() -> None:
        with httpx.stream("POST", f"{server.url}/v1/completions", json=LONG | {"stream": True}, timeout=30) as answer:
            lines = answer.iter_lines()
            next(lines)
            started.wait(30)
            ends.append([line for line in lines if line][-1])

    threads = [threading.Thread(target=read_stream) for _ in range(4)]
    # Stopped, the engine cannot finish anything before it is killed.
    pid = server.engine_pid()
    for thread in threads:
        thread.start()
    started.wait(30)
    os.kill(pid, signal.SIGSTOP)
    waiting = threading.Thread(target=lambda: whole.append(_post(server)))
    waiting.start()
    time.sleep(0.3)
    killed_s = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    for thread in [*threads, waiting]:
        thread.join(10)
    assert time.monotonic() - killed_s < 5
    assert len(ends) == 4
    for end in ends:
        if end != "data: [DONE]":  # a stream that had its last token before the engine was stopped
            assert json.loads(end.removeprefix("data: "))["error"]["code"] == "engine_dead"
    assert any(end != "data: [DONE]" for end in ends)
    assert whole[0].status_code == 503
    for path in ("/health", "/ready"):
        answer = httpx.get(f"{server.url}{path}")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "engine_dead"
    assert _post(server).status_code == 503
    assert server.process.wait(10) == 1


def _post(server: ServerProcess) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/completions", json=LONG, timeout=30)
