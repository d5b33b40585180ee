"""The typed messages between a front end and the engine, on either transport (msgpack over ipc, or queues)."""

from typing import Any

import msgspec

from jaxserve.core.outputs import EngineOutput
from jaxserve.core.params import SamplingParams


class AddRequest(msgspec.Struct, tag=True):
    """Start one token stream. params.n is 1 here: the front end fans out. cache_salt parts the prefix cache."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time_s: float
    priority: int = 0
    cache_salt: str | None = None


class AbortRequests(msgspec.Struct, tag=True):
    """End these requests now; unknown and finished ids are ignored. Each live one answers with ABORT."""

    request_ids: list[str]


class Call(msgspec.Struct, tag=True):
    """Ask the engine something between two steps: stats, reset_prefix_cache."""

    call_id: int
    method: str
    args: list[Any] = []


class Shutdown(msgspec.Struct, tag=True):
    """Leave the loop; running requests are aborted (the front end drains first)."""


class EngineInfo(msgspec.Struct):
    """What a front end must know of a ready engine (no jax needed to read it).

    startup_s: seconds of each phase, one after the other: import, config, weights, compile (what was still to
        wait for when the weights were there), capture (the first run of every program).
    num_compilations: during the start. num_pending_programs: still to be compiled while it serves.
    """

    model_path: str
    architecture: str
    dtype: str
    kv_cache_dtype: str
    vocab_size: int
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_logprobs: int
    page_size: int
    num_pages: int
    eos_token_ids: list[int]
    device: str
    startup_s: dict[str, float]
    peak_bandwidth: float | None = None  # bytes a second that the roofline meter measures against; None if unknown
    peak_flops: float | None = None  # operations a second, likewise
    num_compilations: int = 0
    num_pending_programs: int = 0


class SchedulerStats(msgspec.Struct):
    """A snapshot after a step; counters are totals since the start.

    step_*: of the roofline meter (jaxserve/runner/meter.py), as floats since they outgrow 64 bits. step_memory_s,
    step_compute_s, step_host_s, step_unknown_s: seconds of steps by verdict; their sum is the time of all steps.
    host_gap_s: time, while there was work, in which the device had no step; num_host_gaps: how often.
    replicas: of a fleet, whose numbers are sums then (and start again with a replica); empty for one engine.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_waiting_tokens: int = 0
    num_pages: int = 0
    num_used_pages: int = 0
    num_cached_pages: int = 0
    num_preemptions: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_steps: int = 0
    num_step_tokens: int = 0
    num_compilations_after_warmup: int = 0
    num_pending_programs: int = 0
    num_corrupted_requests: int = 0
    device_memory_used_bytes: int = 0
    device_memory_total_bytes: int = 0
    step_read_bytes: float = 0.0
    step_write_bytes: float = 0.0
    step_flops: float = 0.0
    step_floor_s: float = 0.0
    step_memory_s: float = 0.0
    step_compute_s: float = 0.0
    step_host_s: float = 0.0
    step_unknown_s: float = 0.0
    num_host_gaps: int = 0
    host_gap_s: float = 0.0
    replicas: "list[ReplicaStats]" = []

    @property
    def gpu_memory_used(self) -> int:
        """device_memory_used_bytes, under the name that published monitoring loops read."""
        return self.device_memory_used_bytes

    @property
    def gpu_memory_total(self) -> int:
        """device_memory_total_bytes, likewise."""
        return self.device_memory_total_bytes

    @property
    def num_active_seqs(self) -> int:
        """num_running, likewise."""
        return self.num_running


class ReplicaStats(msgspec.Struct):
    """One engine of a fleet. state: up, starting (or waiting to be started again) or failed (given up)."""

    index: int
    state: str
    num_restarts: int
    num_requests: int
    stats: SchedulerStats

    @property
    def is_up(self) -> bool:
        return self.state == "up"


class StartupProgress(msgspec.Struct, tag=True):
    """One line for a person waiting: what the starting engine is doing."""

    text: str


class Ready(msgspec.Struct, tag=True):
    info: EngineInfo


class StartupFailed(msgspec.Struct, tag=True):
    """The engine could not start; kind is the error class's name (ConfigError, CheckpointError or another)."""

    kind: str
    message: str


class Outputs(msgspec.Struct, tag=True):
    """All news of one step; stats None where unchanged."""

    outputs: list[EngineOutput]
    stats: SchedulerStats | None = None


class CallResult(msgspec.Struct, tag=True):
    call_id: int
    value: Any = None
    error: str | None = None


class EngineFailed(msgspec.Struct, tag=True):
    """The engine's last words: it cannot go on."""

    message: str


ToEngine = AddRequest | AbortRequests | Call | Shutdown
FromEngine = StartupProgress | Ready | StartupFailed | Outputs | CallResult | EngineFailed
