"""What a fleet decides without processes: when a replica is started again, and which devices it may see."""

from pathlib import Path
from typing import Any

import pytest

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError
from jaxserve.engine import replica, replica_devices
from jaxserve.engine.fleet_client import process_client
from jaxserve.engine.fleet_stats import Gathering, merged_stats
from jaxserve.engine.messages import ReplicaStats, SchedulerStats
from jaxserve.engine.replica_devices import THREADS, environments, visible_gpus


def test_restarts_come_slower_and_end() -> None:
    policy = replica.RestartPolicy()
    delays = [policy.delay_s(now_s) for now_s in (0.0, 1.0, 2.0, 3.0)]
    assert delays == [0.5, 1.0, 2.0, None]
    assert policy.delay_s(replica.RESTART_WINDOW_S) == 2.0, "the first one is long ago"
    assert policy.delay_s(replica.RESTART_WINDOW_S + 0.5) is None


def args_of(**fields: Any) -> EngineArgs:
    return EngineArgs(**fields)


def test_each_replica_sees_its_own_gpus() -> None:
    assert environments(args_of(data_parallel_size=2, tensor_parallel_size=2), ["0", "3", "5", "7", "9"]) == [
        {"CUDA_VISIBLE_DEVICES": "0,3", "JAX_PLATFORMS": "cuda"},
        {"CUDA_VISIBLE_DEVICES": "5,7", "JAX_PLATFORMS": "cuda"},
    ]
    with pytest.raises(ConfigError, match=r"data_parallel_size=3 .*tensor_parallel_size=2 need 6 GPUs, 5 are visible"):
        environments(args_of(data_parallel_size=3, tensor_parallel_size=2), ["0", "3", "5", "7", "9"])


def test_a_processor_is_shared_by_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(THREADS, raising=False)
    shares = environments(args_of(data_parallel_size=1000), [])
    assert shares == [{THREADS: "1"}] * 1000
    monkeypatch.setenv(THREADS, "3")
    assert environments(args_of(data_parallel_size=2), []) == [{}, {}]


def test_gpus_are_those_that_jax_would_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.setattr(replica_devices, "CUDA_PLUGINS", ("jax",))
    assert visible_gpus({}, tmp_path) == ["0", "1"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-1, 4"}, tmp_path) == ["GPU-1", "4"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) == []
    assert visible_gpus({"JAX_PLATFORMS": "cpu"}, tmp_path) == []
    assert visible_gpus({"JAX_PLATFORMS": "cuda,cpu"}, tmp_path) == ["0", "1"]
    monkeypatch.setattr(replica_devices, "CUDA_PLUGINS", ("no_such_plugin",))
    assert visible_gpus({}, tmp_path) == [], "JAX without its CUDA plugin runs on the CPU"


@pytest.mark.parametrize("size", [0, -1])
def test_no_replicas_are_refused(size: int) -> None:
    with pytest.raises(ConfigError, match=f"data_parallel_size={size} must be at least 1"):
        process_client(args_of(data_parallel_size=size))


def test_sums_and_answers_of_all() -> None:
    parts = [
        ReplicaStats(0, "up", 0, 3, SchedulerStats(num_running=2, num_waiting=1, num_pages=10, step_flops=0.5)),
        ReplicaStats(1, "starting", 2, 0, SchedulerStats(num_pages=10, num_waiting_tokens=4)),
    ]
    stats = merged_stats(parts, num_queued=5, num_queued_tokens=50)
    assert (stats.num_running, stats.num_waiting, stats.num_waiting_tokens) == (2, 6, 54)
    assert (stats.num_pages, stats.step_flops, stats.replicas) == (20, 0.5, parts)
    assert Gathering("reset_prefix_cache", set(), {0: True, 1: False}).value() is False
    assert Gathering("reset_prefix_cache", set(), {1: True, 0: True}).value() is True
    assert Gathering("other", set(), {1: "b", 0: "a"}).value() == "a"
