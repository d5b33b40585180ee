"""Which of a group's processes this one is, and where the first one listens: from flags, or from what started us.

One process a host, with all of the host's devices. Rank 0 leads: it schedules and serves, the others replay its
decisions (jaxserve/engine/follower.py).
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import ConfigError

DEFAULT_PORT = 29501
AUTO = "auto"
_NUM_PORTS = 2  # JAX's coordinator, and the leader's channel beside it


def host_port(address: str, port: int) -> str:
    """host:port, as an address of IPv6 needs it too."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's place. address: rank 0's own, as every host can reach it; port, port + 1: where rank 0 listens."""

    num_ranks: int
    rank: int
    address: str
    port: int = DEFAULT_PORT

    @property
    def is_leader(self) -> bool:
        return self.rank == 0

    @property
    def coordinator(self) -> str:
        """Where JAX's processes meet."""
        return host_port(self.address, self.port)

    @property
    def channel_port(self) -> int:
        """Where the leader speaks to its followers."""
        return self.port + 1


@dataclass(frozen=True, slots=True)
class _Found:
    """What one source knows. names: field -> the variable or flag that said it."""

    names: Mapping[str, str]
    num_ranks: int | None = None
    rank: int | None = None
    address: str | None = None


def find_ranks(
    nnodes: int | str,
    node_rank: int | None,
    master_addr: str | None,
    master_port: int,
    environment: Mapping[str, str],
) -> Ranks | None:
    """The group that the flags ask for; None for one process alone (nnodes=1), whatever the environment holds.

    nnodes: processes, or "auto" for as many as were started. What a flag leaves open is read from the environment of
    LeaderWorkerSet, of an Indexed Job or JobSet, or of Slurm.
    Raises ConfigError where something is missing, out of range, or said twice and differently.
    """
    flags = _of_flags(nnodes, node_rank, master_addr)
    if flags.num_ranks == 1:
        if node_rank not in (None, 0):
            raise ConfigError(f"node_rank={node_rank} with nnodes=1: ranks go from 0 to nnodes - 1; give both flags.")
        return None
    merged = _merge(flags, _of_environment(environment))
    found = Ranks(
        num_ranks=_needed(merged.num_ranks, "number of processes", "--nnodes"),
        rank=_needed(merged.rank, "rank of this process", "--node-rank"),
        address=_needed(merged.address, "address of rank 0", "--master-addr"),
        port=master_port,
    )
    _check(found, merged.names)
    return None if found.num_ranks == 1 else found


def ranks_of(args: EngineArgs) -> Ranks | None:
    """The group that an engine's arguments and this process's environment ask for; None for one process alone.

    Raises ConfigError, also where the rest of the arguments cannot be had in a group.
    """
    found = find_ranks(args.nnodes, args.node_rank, args.master_addr, args.master_port, os.environ)
    if found is not None and not args.engine_process:
        raise ConfigError(f"engine_process=False with nnodes={args.nnodes}: a group's engine has a process of its own.")
    if found is not None and args.data_parallel_size != 1:
        raise ConfigError(
            f"data_parallel_size={args.data_parallel_size} with nnodes={args.nnodes}: a group serves one copy of the "
            f"model; start a group for each."
        )
    if found is not None and args.compile_in_background:
        raise ConfigError(
            f"compile_in_background with nnodes={args.nnodes}: every host must run the same programs; leave it out."
        )
    return found


def _of_flags(nnodes: int | str, node_rank: int | None, master_addr: str | None) -> _Found:
    names = {"num_ranks": "nnodes", "rank": "node_rank", "address": "master_addr"}
    if nnodes == AUTO:
        return _Found(names, None, node_rank, master_addr)
    try:
        return _Found(names, int(nnodes), node_rank, master_addr)
    except ValueError:
        raise ConfigError(f"nnodes={nnodes!r} must be a number of processes, one a host, or {AUTO!r}.") from None


def _of_environment(environment: Mapping[str, str]) -> _Found:
    """What the first starter that left its marks says."""
    for marks, read in (
        ("LWS_LEADER_ADDRESS", _of_leader_worker_set),
        ("JOB_COMPLETION_INDEX", _of_indexed_job),
        ("SLURM_PROCID", _of_slurm),
    ):
        if environment.get(marks):
            return read(environment)
    return _Found({})


def _of_leader_worker_set(environment: Mapping[str, str]) -> _Found:
    names = {"num_ranks": "LWS_GROUP_SIZE", "rank": "LWS_WORKER_INDEX", "address": "LWS_LEADER_ADDRESS"}
    size, rank = (_number(environment, names[name]) for name in ("num_ranks", "rank"))
    return _Found(names, size, rank, environment["LWS_LEADER_ADDRESS"])


def _of_indexed_job(environment: Mapping[str, str]) -> _Found:
    """An Indexed Job numbers its pods and says no more; a JobSet's pods have names that follow from the set's."""
    names = {"rank": "JOB_COMPLETION_INDEX", "address": "JOBSET_NAME and REPLICATED_JOB_NAME"}
    jobset, job = environment.get("JOBSET_NAME"), environment.get("REPLICATED_JOB_NAME")
    address = f"{jobset}-{job}-0-0.{jobset}" if jobset and job else None
    return _Found(names, None, _number(environment, "JOB_COMPLETION_INDEX"), address)


def _of_slurm(environment: Mapping[str, str]) -> _Found:
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
    if not re.fullmatch(r"1(\(x\d+\))?", per_node):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE={per_node}: one process a host takes all of the host's devices; "
            f"start with srun --ntasks-per-node=1."
        )
    size_name = "SLURM_STEP_NUM_TASKS" if environment.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"
    list_name = "SLURM_STEP_NODELIST" if environment.get("SLURM_STEP_NODELIST") else "SLURM_JOB_NODELIST"
    nodes = environment.get(list_name)
    return _Found(
        {"num_ranks": size_name, "rank": "SLURM_PROCID", "address": list_name},
        _number(environment, size_name),
        _number(environment, "SLURM_PROCID"),
        first_node(nodes) if nodes else None,
    )


def first_node(nodes: str) -> str:
    """The first name of a Slurm node list: "gpu[003-006,9],cpu1" begins with gpu003."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if name is None:
        raise ConfigError(f"{nodes!r} is no Slurm node list; name rank 0's address with --master-addr.")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", name[0])


def _merge(flags: _Found, environment: _Found) -> _Found:
    """Flags first, the environment where they are silent. Raises ConfigError where both speak and differ."""
    values: dict[str, int | str | None] = {}
    names: dict[str, str] = {}
    for name in [one.name for one in fields(_Found) if one.name != "names"]:
        said, found = getattr(flags, name), getattr(environment, name)
        if name != "address" and None not in (said, found) and said != found:
            raise ConfigError(
                f"{flags.names[name]}={said} but {environment.names[name]}={found}: leave the flag out, "
                f"or unset the variable."
            )
        is_said = said is not None
        values[name] = said if is_said else found
        names[name] = flags.names[name] if is_said else environment.names.get(name, "")
    return _Found(names, **values)  # pyright: ignore[reportArgumentType]


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} must be a whole number.")
    return int(text)


def _needed[T](value: T | None, what: str, flag: str) -> T:
    if value is None:
        raise ConfigError(
            f"The {what} is not known: give {flag}, or start through LeaderWorkerSet, JobSet or srun, whose "
            f"variables say it."
        )
    return value


def _check(ranks: Ranks, names: Mapping[str, str]) -> None:
    if ranks.num_ranks < 1:
        raise ConfigError(f"{names['num_ranks']}={ranks.num_ranks} must be at least 1.")
    if not 0 <= ranks.rank < ranks.num_ranks:
        raise ConfigError(
            f"{names['rank']}={ranks.rank} is outside 0..{ranks.num_ranks - 1}, the ranks of "
            f"{names['num_ranks']}={ranks.num_ranks} processes."
        )
    if not ranks.address.strip():
        raise ConfigError(f"{names['address']} is empty: name rank 0's address as every host reaches it.")
    if not 1024 <= ranks.port <= 65535 - _NUM_PORTS + 1:
        raise ConfigError(
            f"master_port={ranks.port} must be within 1024..{65535 - _NUM_PORTS + 1}: it and the next one are used."
        )
