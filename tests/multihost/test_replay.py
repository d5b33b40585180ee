"""Two real processes, one model: the same tokens as one process, and an end of both whenever one is lost or differs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rank_process import generate

from jaxserve.core.config import EngineArgs
from jaxserve.engine.core import EngineCore

ROOT = Path(__file__).parents[2]
WAIT_S = 120
ARGS: dict[str, Any] = {
    "max_num_seqs": 4,
    "max_num_batched_tokens": 16,
    "kv_cache_memory_bytes": 2**20,
    "page_size": 16,
    "max_model_len": 128,
    "tensor_parallel_size": 2,
}


class Rank:
    """A process of `rank_process.py`."""

    def __init__(self, rank: int, num_ranks: int, port: int, args: dict[str, Any], forever: bool) -> None:
        said = {"rank": rank, "num_ranks": num_ranks, "port": port, "args": args, "forever": forever}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("rank_process.py")), json.dumps(said)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        )

    def wait_for(self, word: str) -> None:
        assert self.process.stderr is not None
        seen: list[str] = []
        for line in self.process.stderr:
            seen.append(line)
            if word in line:
                return
        raise AssertionError("".join(seen))

    def end(self) -> tuple[int, str, str]:
        """(exit code, standard output, the rest of standard error), once it has ended by itself."""
        out, error = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, out, error


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_checkpoint) -> dict[str, Any]:
    """Arguments of every rank."""
    return ARGS | {"model": str(tiny_checkpoint), "compilation_cache_dir": str(tmp_path_factory.mktemp("compiled"))}


@pytest.fixture
def start(shared):
    started: list[Rank] = []

    def start_group(*args_of_each: dict[str, Any], forever: bool = False) -> list[Rank]:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        group = [Rank(i, len(args_of_each), port, shared | args, forever) for i, args in enumerate(args_of_each)]
        started.extend(group)
        return group

    yield start_group
    for one in started:
        one.process.kill()
        one.process.communicate()


def tokens(out: str) -> dict[str, list[int]]:
    return json.loads(next(line for line in out.splitlines() if line.startswith("{")))


def test_a_group_says_what_one_process_says_and_parts_in_peace(start, shared):
    started = start({}, {})
    alone = EngineCore(
        EngineArgs(**(shared | {"compilation_cache_dir": "off", "tensor_parallel_size": 1})), lambda line: None
    )
    expected = generate(alone)
    alone.close()
    group = [rank.end() for rank in started]
    assert [code for code, _, _ in group] == [0, 0], group
    assert tokens(group[0][1]) == expected
    assert sum(map(len, expected.values())) > 100


def test_a_lost_follower_ends_the_leader(start):
    leader, follower = start({}, {}, forever=True)
    leader.wait_for("serving")
    follower.process.kill()
    code, _, error = leader.end()
    # By silence, or by a collective that broke: whichever is noticed first.
    assert (code, "rank 1 fell silent" in error) == (3, True) or (code, "a step failed on rank 0" in error) == (1, True)


def test_a_lost_leader_ends_the_followers(start):
    leader, follower = start({}, {}, forever=True)
    leader.wait_for("serving")
    leader.process.kill()
    assert follower.end()[0] in (3, -6)  # by our own watch, or by JAX's, which is mostly faster


def test_ranks_that_are_not_started_alike_do_not_begin(start):
    ends = [rank.end() for rank in start({}, {"seed": 1, "load_format": "dummy"})]
    assert all(code not in (0, -9) for code, _, _ in ends)
    for _, _, error in ends:
        assert "seed is 0 on rank 0 and 1 on rank 1" in error and "load_format is 'auto' on rank 0" in error
