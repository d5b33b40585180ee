"""Starting from a bundle, and serving while steps are still being compiled, over HTTP."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest
from server_process import ENGINE, ROOT, ServerProcess, metric

from jaxserve.demo import demo_checkpoint

ASKED = {"prompt": "Once upon a time", "max_tokens": 24, "temperature": 0}


def answer(server: ServerProcess, **asked) -> str:
    reply = httpx.post(f"{server.url}/v1/completions", json=ASKED | asked, timeout=60)
    return reply.raise_for_status().json()["choices"][0]["text"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "demo.bundle"
    flags = [word for name, value in ENGINE.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "jaxserve.cli", "compile", "-o", str(path), *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return path


def test_the_demo_model_is_served_from_a_bundle_without_a_compilation(bundle: Path, tmp_path: Path) -> None:
    engine = {"model": str(demo_checkpoint())}
    servers = [
        ServerProcess(engine | {"bundle": str(bundle), "compilation_cache_dir": "off"}),
        ServerProcess(engine | {"compilation_cache_dir": str(tmp_path)}),
    ]
    try:
        loaded, compiled = (server.wait_ready() for server in servers)
        assert "; 0 programs compiled" in loaded.log and "; 0 programs compiled" not in compiled.log
        for asked in (
            {},
            {"n": 2, "temperature": 1, "seed": 2},
            {"logprobs": 3},
            {"temperature": 1, "top_p": 0.8, "seed": 1},
        ):
            assert answer(loaded, **asked) == answer(compiled, **asked)
        assert metric(loaded.metrics(), "jaxserve:compilations_after_warmup") == 0
    finally:
        for server in servers:
            server.stop()


def test_a_bundle_for_another_engine_ends_the_start_with_one_line(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.bundle"
    broken.write_bytes(bundle.read_bytes()[:-500])
    cases = [({"bundle": str(bundle), "max_num_seqs": 8}, "another max_num_seqs: 4 in the bundle, 8 here")]
    cases += [({"bundle": str(broken)}, "not a whole one")]
    for engine, reason in cases:
        failed = ServerProcess({"model": str(demo_checkpoint())} | engine)
        try:
            assert failed.process.wait(60) == 2
        finally:
            failed.stop()
        assert reason in failed.log and "Traceback" not in failed.log


def test_steps_in_the_background_are_counted_and_do_not_hold_up_the_end(tiny_checkpoint: Path) -> None:
    many = {"max_num_batched_tokens": 256, "compile_in_background": True, "compilation_cache_dir": "off"}
    server = ServerProcess({"model": str(tiny_checkpoint)} | many)
    try:
        server.wait_ready()
        ready = httpx.get(f"{server.url}/ready")
        assert ready.status_code == 200 and ready.json()["num_pending_programs"] > 0
        assert "follow in the background" in server.log
        assert answer(server, max_tokens=4)
        engine = psutil.Process(server.engine_pid())
        start_s = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert time.monotonic() - start_s < 5
        assert not engine.is_running()
    finally:
        server.stop()
    assert "Traceback" not in server.log
