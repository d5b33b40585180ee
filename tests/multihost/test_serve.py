"""`jaxserve serve` on two hosts, as two groups of processes on loopback: equal answers, and 503 once a host is lost."""

import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).parents[2]
SIZES = ["--max-num-seqs=2", "--max-num-batched-tokens=16", "--max-model-len=128"]
FLAGS = [*SIZES, "--kv-cache-memory-bytes=1048576", "--page-size=16", "--port=0"]
BODY: dict[str, Any] = {"prompt": [5, 9, 40, 7], "max_tokens": 24, "temperature": 0, "ignore_eos": True}


def start(model: Path, cache: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "jaxserve.cli", "serve", str(model), *FLAGS, f"--compilation-cache-dir={cache}", *flags],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ
        | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
    )


def address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    seen: list[str] = []
    for line in server.stderr:
        seen.append(line)
        if found := re.match(r"ready: .* at (http://\S+)/v1", line):
            return found[1]
    raise AssertionError("".join(seen))


def test_two_hosts_answer_as_one_and_end_together(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = ["--tensor-parallel-size=4", "--nnodes=2", "--master-addr=127.0.0.1", f"--master-port={port}"]
    started = [start(tiny_checkpoint, tmp_path, *group, f"--node-rank={rank}") for rank in range(2)]
    started.append(start(tiny_checkpoint, tmp_path))
    leader, follower, alone = started
    try:
        answers = [httpx.post(f"{address(server)}/v1/completions", json=BODY, timeout=60) for server in (alone, leader)]
        assert [answer.status_code for answer in answers] == [200, 200]
        assert answers[0].json()["choices"] == answers[1].json()["choices"]
        url = str(answers[1].url.copy_with(path="/health"))
        children = psutil.Process(leader.pid).children()
        follower.kill()
        until_s = time.monotonic() + 20
        while httpx.get(url).status_code == 200:
            assert time.monotonic() < until_s
            time.sleep(0.1)
        assert httpx.get(url).status_code == 503
        assert leader.wait(20) == 1
        assert not any(child.is_running() for child in children)
    finally:
        for one in started:
            one.kill()
            one.communicate()
