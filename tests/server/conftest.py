"""One server for all tests that do not end it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from server_process import ServerProcess

StartServer = Callable[..., ServerProcess]


@pytest.fixture(scope="session")
def engine_args(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """EngineArgs fields of every server here. The cache of compiled steps is shared: only the first one compiles."""
    cache = tmp_path_factory.mktemp("compiled")
    return {"model": str(tiny_checkpoint), "served_model_name": "tiny", "compilation_cache_dir": str(cache)}


@pytest.fixture(scope="session")
def server(engine_args: dict[str, Any]) -> Iterator[ServerProcess]:
    process = ServerProcess(engine_args)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


@pytest.fixture
def start_server(server: ServerProcess, engine_args: dict[str, Any]) -> Iterator[StartServer]:
    """Call with ServerArgs fields for a server of the test's own."""
    started: list[ServerProcess] = []

    def start(**server_args: Any) -> ServerProcess:
        started.append(ServerProcess(engine_args, server_args))
        return started[-1].wait_ready()

    yield start
    for process in started:
        process.stop()


@pytest.fixture
def http(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=60) as client:
        yield client
