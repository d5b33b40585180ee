"""Compiling for an H200 where there is none: by the interpreter of an environment that has XLA's CUDA compiler."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compiled_program import Kernel, Program, read_ptxas

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-cuda" / "bin" / "python"
HOW = "UV_PROJECT_ENVIRONMENT=.venv-cuda uv sync --locked --no-default-groups --group cuda-compiler"

_reports: list[str] = []


@pytest.fixture(scope="session")
def report() -> Callable[[str], None]:
    """Adds a line to what is printed after the tests."""
    return _reports.append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _reports:
        terminalreporter.section("compiled for an H200")
        for line in _reports:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """A kernel's program, by the name of its case."""
    return _programs(tmp_path_factory, "kernels")


@pytest.fixture(scope="session")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """A whole step, by the name of its case."""
    return _programs(tmp_path_factory, "steps")


@pytest.fixture(scope="session")
def cuts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """A step over several devices, by the name of its case."""
    return _programs(tmp_path_factory, "cuts")


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Program]:
    """A mixture of experts, by the name of its case."""
    return _programs(tmp_path_factory, "experts")


@pytest.fixture(scope="session")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of `jaxserve bench multihost --simulate` over 2 and 2 x 8 devices, of one layer."""
    folder = tmp_path_factory.mktemp("simulated")
    _compile("compile_for_h200.py", "simulated", folder)
    return json.loads((folder / "simulated.json").read_text())


@pytest.fixture(scope="session")
def triton_kernels(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Kernel]]:
    """What the assembler says of a case's jax-triton kernels, by its name and compute capability."""
    folder = tmp_path_factory.mktemp("triton")
    _compile("compile_triton.py", folder)
    return lambda name: read_ptxas((folder / name / "ptxas.txt").read_text())


def _programs(tmp_path_factory: pytest.TempPathFactory, group: str) -> Callable[[str], Program]:
    """Compiles a group of cases; its programs by the names of the cases."""
    folder = tmp_path_factory.mktemp(group)
    _compile("compile_for_h200.py", group, folder)
    return lambda name: Program(folder / name)


def _compile(script: str, *arguments: str | Path) -> None:
    if sys.platform != "linux":
        pytest.skip("XLA's CUDA compiler is for Linux")
    if not PYTHON.exists():
        reason = f"needs XLA's CUDA compiler (no GPU) in {PYTHON.parents[1]}: {HOW}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "MOSAIC_GPU_DUMP_PTXAS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    command = [PYTHON, Path(__file__).with_name(script), *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{script} {arguments[0]} failed ({done.returncode}):\n{done.stderr[-4000:]}")
