"""The engine in a process of its own: it dies, we notice; we die, it goes; it cannot start, we say why."""

import asyncio
import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines import small_args

from jaxserve import LLM, AsyncEngine, AsyncEngineArgs, SamplingParams
from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import CheckpointError, ConfigError, EngineDead
from jaxserve.engine.messages import AddRequest, Call, CallResult, EngineFailed, Outputs
from jaxserve.engine.process_client import ProcessClient

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=240, ignore_eos=True)


@pytest.fixture
def client(tiny_checkpoint: Path) -> Iterator[ProcessClient]:
    client = ProcessClient(EngineArgs(**small_args(tiny_checkpoint)))
    client.start()
    yield client
    client.close()


def is_gone(pid: int, timeout_s: float = 10.0) -> bool:
    """Whether the process ends in time; a zombie has ended, but nobody has waited for it."""
    deadline_s = time.monotonic() + timeout_s
    while psutil.pid_exists(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    return not psutil.pid_exists(pid)


def test_messages_cross_and_nothing_stays_behind(client: ProcessClient) -> None:
    pid = client.pid
    child = client._child
    assert child is not None
    assert stat.S_IMODE(child.directory.stat().st_mode) == 0o700
    client.send(AddRequest("one", [5, 6, 7], GREEDY, time.monotonic()))
    tokens: list[int] = []
    while len(tokens) < 8:
        message = client.receive()
        if isinstance(message, Outputs):
            tokens += [token for output in message.outputs for token in output.new_token_ids]
    client.send(Call(1, "no such method"))
    message = client.receive()
    while not isinstance(message, CallResult):
        message = client.receive()
    assert message.error is not None
    assert "no such method" in message.error
    os.kill(pid, signal.SIGINT)  # the front end decides when the engine leaves
    os.kill(pid, signal.SIGTERM)
    client.send(Call(2, "stats"))
    client.close()
    client.close()
    assert child.process.returncode == 0
    assert is_gone(pid, 0)
    assert not child.directory.exists()
    with pytest.raises(EngineDead, match="shut down"):
        client.send(Call(3, "stats"))


async def test_kill_9_ends_every_stream_at_once(tiny_checkpoint: Path) -> None:
    engine = AsyncEngine.from_engine_args(AsyncEngineArgs(**small_args(tiny_checkpoint)))
    client = engine._client
    assert isinstance(client, ProcessClient)
    pid = client.pid

    async def run(index: int) -> None:
        while True:
            async for _ in engine.generate("hello", LONG, f"r{index}"):
                pass

    tasks = [asyncio.create_task(run(index)) for index in range(6)]
    while not (await engine.stats()).num_active_seqs:
        await asyncio.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    killed_s = time.monotonic()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert time.monotonic() - killed_s < 1.5
    assert [type(result) for result in results] == [EngineDead] * 6
    assert "signal 9" in str(results[0])
    assert not engine.is_running
    with pytest.raises(EngineDead):
        await engine.check_health()
    engine.shutdown()
    assert is_gone(pid, 0)


PARENT = """
import os, sys
from jaxserve.core.config import EngineArgs
from jaxserve.engine.process_client import ProcessClient
client = ProcessClient(EngineArgs(**eval_args))
client.start()
print(client.pid, flush=True)
sys.stdin.readline()
"""


def test_the_engine_dies_with_its_parent(tiny_checkpoint: Path) -> None:
    code = PARENT.replace("eval_args", repr(small_args(tiny_checkpoint)))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert is_gone(pid)


def test_a_failed_start_says_why(tiny_checkpoint: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(tiny_checkpoint, cut)
    for file in cut.glob("*.safetensors"):
        os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ConfigError, match="max_model_len"):
        AsyncEngine.from_engine_args(AsyncEngineArgs(**small_args(tiny_checkpoint, max_model_len=10**6)))
    with pytest.raises(CheckpointError, match="safetensors"):
        AsyncEngine.from_engine_args(AsyncEngineArgs(**small_args(cut)))
    assert "Traceback" not in capfd.readouterr().err
    assert not psutil.Process().children()


def test_llm_may_have_its_engine_elsewhere(tiny_checkpoint: Path) -> None:
    lines: list[str] = []
    with LLM(**small_args(tiny_checkpoint, engine_process=True), progress=lines.append) as llm:
        [output] = llm.generate("hello", GREEDY, use_tqdm=False)
        assert len(output.outputs[0].token_ids) == 8
        assert llm.stats().num_running == 0
        assert psutil.Process().children()
    assert any("compiled" in line for line in lines)
    assert not psutil.Process().children()


def test_a_start_given_up_leaves_nothing(tiny_checkpoint: Path) -> None:
    def give_up(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        AsyncEngine.from_engine_args(AsyncEngineArgs(**small_args(tiny_checkpoint)), give_up)
    assert not psutil.Process().children()


def test_sending_to_a_dead_engine_does_not_wait_for_it(client: ProcessClient) -> None:
    os.kill(client.pid, signal.SIGKILL)

    def send_on_and_on() -> None:  # until the socket knows, messages are taken and lost
        deadline_s = time.monotonic() + 10
        while time.monotonic() < deadline_s:
            client.send(Call(1, "stats"))
            time.sleep(0.001)

    with pytest.raises(EngineDead, match="has ended"):
        send_on_and_on()
    [last_words] = list(client.arrived())
    assert isinstance(last_words, EngineFailed)
    assert "signal 9" in last_words.message
    assert list(client.arrived()) == []
