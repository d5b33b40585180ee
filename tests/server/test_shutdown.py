"""SIGTERM: new work is refused, running work finishes, the process ends with 0 and leaves nothing behind."""

import contextlib
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
from server_process import ServerProcess

LONG: dict[str, Any] = {"prompt": "Tell me everything", "ignore_eos": True, "max_tokens": 230, "stream": True}


class Stream(threading.Thread):
    """Reads one stream to its end."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__()
        self.first = threading.Event()
        self.lines: list[str] = []
        self._url = f"{server.url}/v1/completions"
        self.start()
        assert self.first.wait(30)

    def run(self) -> None:
        # A server that was told twice to end cuts the connection.
        with (
            contextlib.suppress(httpx.TransportError),
            httpx.stream("POST", self._url, json=LONG, timeout=30) as answer,
        ):
            for line in filter(None, answer.iter_lines()):
                self.lines.append(line)
                self.first.set()


def test_term_drains_refuses_and_ends_with_0(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server()
    engine = psutil.Process(server.engine_pid())
    with httpx.Client(base_url=server.url) as early:
        assert early.get("/ready").status_code == 200
        streams = [Stream(server) for _ in range(8)]
        engine.suspend()  # so that the streams are still there when the signal comes
        server.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + 5
        while early.get("/ready").status_code == 200:
            assert time.monotonic() < deadline_s
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "hi"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        engine.resume()
    for stream in streams:
        stream.join(30)
        assert stream.lines[-1] == "data: [DONE]"
    assert server.process.wait(10) == 0
    assert not engine.is_running()


def test_idle_ends_fast_and_a_second_signal_at_once(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server()
    stream = Stream(server)
    engine = psutil.Process(server.engine_pid())
    engine.suspend()
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert server.process.poll() is None, "a running request keeps the server"
    server.process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    engine.resume()
    start_s = time.monotonic()
    server.process.wait(10)
    assert time.monotonic() - start_s < 4
    stream.join(10)
    assert not engine.is_running()


def test_timeout_ends_what_still_runs_with_an_error_event(start_server: Callable[..., ServerProcess]) -> None:
    server = start_server(shutdown_timeout=0.5)
    engine = psutil.Process(server.engine_pid())  # not between the next two lines: the stream ends in a quarter second
    stream = Stream(server)
    engine.suspend()
    server.process.send_signal(signal.SIGTERM)
    stream.join(10)
    engine.resume()
    assert '"code":"shutting_down"' in stream.lines[-1]
    assert server.process.wait(15) == 0


def test_signal_while_the_engine_starts_ends_both(engine_args: dict[str, Any]) -> None:
    server = ServerProcess(engine_args | {"compilation_cache_dir": "off"})
    try:
        parent = psutil.Process(server.process.pid)
        deadline_s = time.monotonic() + 60
        while not parent.children():
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        engine = parent.children()[0]
        server.process.terminate()
        assert server.process.wait(10) == 0
        assert not engine.is_running()
    finally:
        server.stop()
    assert "Traceback" not in server.log


def test_what_cannot_start_says_why_in_one_line(server: ServerProcess, engine_args: dict[str, Any]) -> None:
    cases = [
        (engine_args | {"model": "/nonexistent/model"}, {}, "/nonexistent/model"),
        (engine_args, {"port": server.port}, "address already in use"),
    ]
    for engine, args, reason in cases:
        failed = ServerProcess(engine, args)
        try:
            assert failed.process.wait(60) == 2
        finally:
            failed.stop()
        assert reason in failed.log
        assert "Traceback" not in failed.log
