"""`LLM` over two replicas: the same tokens as over one, in the prompts' order, and what happens when one dies."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from engines import small_args

from jaxserve import LLM, SamplingParams
from jaxserve.core.errors import ConfigError, EngineDead
from jaxserve.engine import replica
from jaxserve.engine.fleet_client import FleetClient

PROMPTS = [f"prompt number {index} " + "word " * (index % 5) for index in range(14)]
SAMPLED = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
LONG = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)


def client_of(llm: LLM) -> FleetClient:
    assert isinstance(llm._client, FleetClient)
    return llm._client


def pids(llm: LLM) -> list[int]:
    return [client.pid for client in client_of(llm)._clients()]


def stopped_at_work(llm: LLM) -> int | None:
    """The index of a replica that is stopped in the middle of a request; all that it had sent was taken in."""
    client = client_of(llm)

    def is_at_work(index: int) -> bool:
        placed = client._placed.values()
        return any(one.ticket and one.ticket.replica == index and one.has_news and not one.is_ended for one in placed)

    for index, pid in enumerate(pids(llm)):
        if is_at_work(index):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.1)
            client._collect()
            if is_at_work(index):
                return index
            os.kill(pid, signal.SIGCONT)
    return None


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


@pytest.fixture(scope="module")
def others() -> set[psutil.Process]:
    """Processes of other tests that live as long as the session."""
    return children()


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, for the last test takes it away."""
    return shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("fleet") / "checkpoint")


@pytest.fixture(scope="module")
def fleet(checkpoint: Path, others: set[psutil.Process]) -> Iterator[LLM]:
    lines: list[str] = []
    with LLM(**small_args(checkpoint, data_parallel_size=2), progress=lines.append) as llm:
        assert any(line.startswith("replica 1: ") for line in lines)
        yield llm
    assert children() <= others


def test_replicas_give_what_one_engine_gives(fleet: LLM, tiny_checkpoint: Path) -> None:
    """Seeds that nobody gave are drawn in the order of arrival, so even these agree."""
    with LLM(**small_args(tiny_checkpoint)) as one:
        wanted = one.generate(PROMPTS, SAMPLED, use_tqdm=False)
        sampled_twice = one.generate("twice", SamplingParams(n=2, max_tokens=12), use_tqdm=False)
    outputs = fleet.generate(PROMPTS, SAMPLED, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [output.outputs[0].token_ids for output in outputs] == [output.outputs[0].token_ids for output in wanted]
    [twice] = fleet.generate("twice", SamplingParams(n=2, max_tokens=12), use_tqdm=False)
    assert [sample.token_ids for sample in twice.outputs] == [sample.token_ids for sample in sampled_twice[0].outputs]
    stats = fleet.stats()
    assert [part.state for part in stats.replicas] == ["up", "up"]
    assert all(part.stats.num_steps for part in stats.replicas), "both had work"
    assert stats.num_steps == sum(part.stats.num_steps for part in stats.replicas)
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert "replicas" not in fleet.get_metrics()
    assert fleet.reset_prefix_cache()


def test_leaving_a_stream_ends_what_runs_and_what_waits(fleet: LLM) -> None:
    stream = fleet.stream(PROMPTS * 2, LONG)
    next(stream)
    stream.close()
    [output] = fleet.generate("after", SAMPLED, use_tqdm=False)
    assert output.finished
    stats = fleet.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_used_pages) == (0, 0, 0)
    assert not client_of(fleet)._placed
    assert not client_of(fleet)._streams


def test_a_killed_replica_ends_what_it_had_begun_and_nothing_else(fleet: LLM) -> None:
    wanted = {output.prompt: output for output in fleet.generate(PROMPTS, LONG, use_tqdm=False)}
    before = pids(fleet)
    finals: list[str] = []
    errors, victim = 0, None
    for output in fleet.stream(PROMPTS, LONG):
        if victim is None and (victim := stopped_at_work(fleet)) is not None:
            os.kill(before[victim], signal.SIGKILL)
        if not output.finished:
            continue
        finals.append(output.request_id)
        if output.error is not None:
            errors += 1
            assert output.error_kind == "ReplicaLost"
            assert "signal 9" in output.error
        else:
            assert output.prompt is not None
            assert output.outputs[0].token_ids == wanted[output.prompt].outputs[0].token_ids
    assert sorted(finals, key=int) == [str(index) for index in range(len(PROMPTS))], "each ends once"
    assert 0 < errors <= 4
    fleet.generate(PROMPTS, SAMPLED, use_tqdm=False)  # with one replica or two
    while len(pids(fleet)) < 2:
        fleet.stats()
    assert victim is not None
    assert before[1 - victim] == pids(fleet)[1 - victim]
    assert not psutil.pid_exists(before[victim]), "no zombie"
    assert [part.num_restarts for part in fleet.stats().replicas] == [victim == 0, victim == 1]
    outputs = fleet.generate(PROMPTS, LONG, use_tqdm=False)
    assert [one.outputs[0].token_ids for one in outputs] == [wanted[name].outputs[0].token_ids for name in PROMPTS]


def test_a_start_that_fails_names_replica_and_sizes(tiny_checkpoint: Path) -> None:
    before = children()
    with pytest.raises(ConfigError, match=r"replica 0 of data_parallel_size=2, .*max_model_len=1000000"):
        LLM(**small_args(tiny_checkpoint, data_parallel_size=2, max_model_len=10**6))
    assert children() == before


def test_replicas_that_cannot_come_back_are_given_up(
    fleet: LLM, checkpoint: Path, others: set[psutil.Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "MAX_RESTARTS", 1)  # one of the two has had it
    shutil.rmtree(checkpoint)
    for pid in pids(fleet):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineDead, match="every replica has ended too often"):
        fleet.generate(PROMPTS, LONG, use_tqdm=False)
    with pytest.raises(EngineDead, match="too often"):
        fleet.stats()
    assert children() <= others
