"""Real servers on loopback, one process each."""

import json
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 240.0

ENGINE = {
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "kv_cache_memory_bytes": 2**22,
    "page_size": 16,
}
SERVER = {"port": 0, "uvicorn_log_level": "warning", "disable_access_log": True}


class ServerProcess:
    """Started on a free port; `wait_ready` before use, `stop` after."""

    def __init__(self, engine: dict[str, Any], server: dict[str, Any] | None = None) -> None:
        asked = {"engine": ENGINE | engine, "server": SERVER | (server or {})}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py")), json.dumps(asked)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "JAX_PLATFORMS": "cpu"},
        )
        self.lines: list[str] = []
        self.url = ""
        self._http = httpx.Client(timeout=30)
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            found = re.match(r"ready: .* at (http://[^/]+)/v1", line)
            if found:
                self.url = found[1]
                self._ready.set()
        self._ready.set()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def wait_ready(self) -> "ServerProcess":
        self._ready.wait(START_TIMEOUT_S)
        assert self.url, f"the server did not start:\n{self.log}"
        return self

    def engine_pid(self) -> int:
        children = psutil.Process(self.process.pid).children()
        assert len(children) == 1, children
        return children[0].pid

    def pages_used(self) -> float:
        return metric(self.metrics(), "jaxserve:kv_pages_used")

    def metrics(self) -> str:
        return self._http.get(f"{self.url}/metrics").raise_for_status().text

    def wait_idle(self, timeout_s: float = 1.0) -> float:
        """Seconds until no page is held and nothing runs; fails after timeout_s."""
        start_s = time.monotonic()
        while True:
            page = self.metrics()
            names = ("kv_pages_used", "num_requests_running", "num_requests_waiting")
            held = {name: metric(page, f"jaxserve:{name}") for name in names}
            waited_s = time.monotonic() - start_s
            if not any(held.values()):
                return waited_s
            assert waited_s < timeout_s, f"still held after {timeout_s} s: {held}"
            time.sleep(0.02)

    def stop(self) -> None:
        self._http.close()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()


def metric(page: str, name: str, **labels: str) -> float:
    """The value of one sample, summed over the labels that are not given."""
    total, found = 0.0, False
    for line in page.splitlines():
        match = re.fullmatch(r"([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
        if match and match[1] == name and all(f'{key}="{value}"' in (match[2] or "") for key, value in labels.items()):
            total, found = total + float(match[3]), True
    assert found, f"no metric {name} {labels}"
    return total
