"""`jaxserve bench multihost` in real processes: one with two devices, and two that have two each."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxserve.cli import main

ROOT = Path(__file__).parents[2]
SHORT = ["--batch-size", "2", "--context-len", "40", "--prompt-len", "16", "--num-steps", "2", "--num-iters", "2"]


def start(checkpoint: Path, *flags: str) -> subprocess.Popen[str]:
    command = "import sys; from jaxserve.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    words = [sys.executable, "-c", command, "bench", "multihost", "--model", str(checkpoint), *SHORT, *flags]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env=environment, **pipes)


def check(found: dict[str, Any], meshes: list[tuple[int, int]]) -> None:
    assert [(one["tensor_parallel_size"], one["num_hosts"]) for one in found["meshes"]] == meshes
    assert (found["benchmark"], found["simulated"]) == ("multihost", False)
    for mesh in found["meshes"]:
        decode, prompt = mesh["steps"]
        assert (decode["kind"], decode["num_tokens"]) == ("decode", 2)
        assert (prompt["kind"], prompt["num_tokens"]) == ("prompt", 16)
        for step in mesh["steps"]:
            assert step["step_ms"] > 0
            assert step["tokens_per_s"] == pytest.approx(step["steps_per_s"] * step["num_tokens"], rel=1e-3)
            assert (step["sums_ms"] > 0) == (mesh["tensor_parallel_size"] > 1)


def test_one_host(tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = start(tiny_checkpoint, "--output-json", str(tmp_path / "a.json"), "--output-svg", str(tmp_path / "a.svg"))
    out, error = done.communicate(timeout=120)
    assert done.returncode == 0, error
    assert len(out.splitlines()) == 2 + 4 and "PREDICTED" not in out
    check(json.loads((tmp_path / "a.json").read_text()), [(1, 1), (2, 1)])
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_two_hosts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    group = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    group += ["--tensor-parallel-sizes", "2", "--output-json", str(tmp_path / "two.json")]
    ranks = [start(tiny_checkpoint, *group, "--node-rank", str(rank)) for rank in range(2)]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    check(json.loads((tmp_path / "two.json").read_text()), [(2, 2)])
    assert "tokens/s" in said[0][0] and "tokens/s" not in said[1][0]  # rank 0 alone prints


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["--tensor-parallel-sizes", "1", "x"], "tensor_parallel_sizes=1 x must be numbers of at least 1"),
        (["--tensor-parallel-sizes", "2"], "2 devices cannot be had in equal parts of 1 processes with 1 devices"),
        (
            ["--simulate", "--simulate-device", "abacus"],
            "simulate_device='abacus' is unknown; choose one of h100",
        ),
        (["--simulate", "--tensor-parallel-sizes", "1"], "must be numbers of at least 2"),
        (["--simulate", "--tensor-parallel-sizes", "9"], "9 devices are no equal parts of 2 hosts"),
    ],
)
def test_what_cannot_be_is_named(
    tiny_checkpoint: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "multihost", "--model", str(tiny_checkpoint), *SHORT, *flags]) != 0
    assert message in capsys.readouterr().err
