"""Ranks from flags and from each starter's variables; what is missing, contradicting or out of range is refused."""

import pytest

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from jaxserve.engine.ranks import DEFAULT_PORT, Ranks, find_ranks, first_node, ranks_of

LWS = {"LWS_LEADER_ADDRESS": "llm-0.llm.default", "LWS_GROUP_SIZE": "4", "LWS_WORKER_INDEX": "3"}
JOB = {"JOB_COMPLETION_INDEX": "1"}
JOBSET = JOB | {"JOBSET_NAME": "serve", "REPLICATED_JOB_NAME": "workers"}
SLURM = {
    "SLURM_PROCID": "1",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_NTASKS": "64",  # of the whole job: the step's count
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
}


def find(nnodes: int | str = "auto", rank=None, address=None, port=DEFAULT_PORT, environment=None) -> Ranks | None:
    return find_ranks(nnodes, rank, address, port, environment or {})


def test_flags_alone():
    found = find(2, 1, "10.0.0.1", 4000)
    assert found is not None and found == Ranks(2, 1, "10.0.0.1", 4000)
    assert (found.coordinator, found.channel_port, found.is_leader) == ("10.0.0.1:4000", 4001, False)
    assert Ranks(2, 0, "fd00::1").coordinator == f"[fd00::1]:{DEFAULT_PORT}"


@pytest.mark.parametrize("environment", [{}, LWS, JOBSET, SLURM])
def test_one_process_unless_asked(environment):
    assert find(1, environment=environment) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (LWS, Ranks(4, 3, "llm-0.llm.default")),
        (SLURM, Ranks(2, 1, "gpu003")),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3", "SLURM_JOB_NODELIST": "a,b,c"}, Ranks(3, 0, "a")),
    ],
)
def test_auto_reads_what_the_starter_says(environment, expected):
    assert find(environment=environment) == expected


def test_auto_of_a_group_of_one():
    assert find(environment=LWS | {"LWS_GROUP_SIZE": "1", "LWS_WORKER_INDEX": "0"}) is None


def test_a_job_knows_its_rank_and_a_jobset_its_address():
    assert find(2, None, "serve-0.serve", environment=JOB) == Ranks(2, 1, "serve-0.serve")
    assert find(2, environment=JOBSET) == Ranks(2, 1, "serve-workers-0-0.serve")


def test_a_flag_may_repeat_what_the_environment_says_and_name_another_address():
    assert find(4, 3, "10.1.1.1", environment=LWS) == Ranks(4, 3, "10.1.1.1")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[003-006,9],cpu1", "gpu003"),
        ("r[1-2]n[07,09]", "r1n07"),
        ("a-[2,4]-x.site,b", "a-2-x.site"),
    ],
)
def test_first_node(nodes, first):
    assert first_node(nodes) == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nnodes": "two"}, "nnodes='two'"),
        ({"nnodes": 0, "rank": 0, "address": "a"}, "nnodes=0 must be at least 1"),
        ({"nnodes": 2, "rank": 2, "address": "a"}, r"node_rank=2 is outside 0\.\.1"),
        ({"nnodes": 2, "rank": -1, "address": "a"}, r"node_rank=-1 is outside 0\.\.1"),
        ({"nnodes": 1, "rank": 1, "address": "a"}, "node_rank=1 with nnodes=1"),
        ({"nnodes": 2, "rank": 0}, "address of rank 0 is not known: give --master-addr"),
        ({"nnodes": 2, "rank": 0, "address": " "}, "master_addr is empty"),
        ({"nnodes": 2, "address": "a"}, "rank of this process is not known: give --node-rank"),
        ({"nnodes": "auto", "rank": 0, "address": "a"}, "number of processes is not known: give --nnodes"),
        ({"nnodes": 2, "rank": 0, "address": "a", "port": 80}, "master_port=80"),
        ({"nnodes": 2, "rank": 0, "address": "a", "port": 65535}, "master_port=65535"),
        ({"nnodes": 3, "environment": LWS}, "nnodes=3 but LWS_GROUP_SIZE=4"),
        ({"rank": 0, "environment": SLURM}, "node_rank=0 but SLURM_PROCID=1"),
        ({"environment": LWS | {"LWS_WORKER_INDEX": "4"}}, r"LWS_WORKER_INDEX=4 is outside 0\.\.3"),
        ({"environment": LWS | {"LWS_GROUP_SIZE": "many"}}, "LWS_GROUP_SIZE='many'"),
        ({"environment": LWS | {"LWS_WORKER_INDEX": ""}}, "rank of this process is not known"),
        ({"environment": JOB}, "number of processes is not known"),
        ({"environment": SLURM | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)"}}, "ntasks-per-node=1"),
        ({"environment": SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x1),2"}}, "ntasks-per-node=1"),
        ({"environment": SLURM | {"SLURM_STEP_NODELIST": "["}}, "no Slurm node list"),
    ],
)
def test_refusals_name_the_source(arguments, message):
    with pytest.raises(ConfigError, match=message):
        find(**arguments)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"engine_process": False}, "engine_process=False with nnodes=2"),
        ({"data_parallel_size": 2}, "data_parallel_size=2 with nnodes=2: .*start a group for each"),
        ({"compile_in_background": True}, "compile_in_background with nnodes=2"),
    ],
)
def test_what_a_group_cannot_have_is_named(args, message):
    group = {"nnodes": 2, "node_rank": 0, "master_addr": "10.0.0.1"}
    assert ranks_of(EngineArgs(**group)) == Ranks(2, 0, "10.0.0.1")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=message):
        ranks_of(EngineArgs(**group | args))  # pyright: ignore[reportArgumentType]
    assert ranks_of(EngineArgs(**args)) is None
