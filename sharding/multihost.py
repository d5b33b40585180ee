"""Several processes as one JAX: joining, and saying something to all."""

import jax
import numpy as np
from jax.experimental import multihost_utils


def join(
    coordinator: str,
    num_processes: int,
    process_id: int,
    *,
    bind: str | None = None,
    timeout_s: int = 300,
    heartbeat_timeout_s: int = 30,
) -> None:
    """Become one of num_processes, before JAX's first look at a device; `jax.devices()` are then those of all.

    coordinator: host:port of process 0, which listens on `bind` (all of its addresses if None).
    timeout_s: how long the others may take to come. heartbeat_timeout_s: silence after which JAX takes a process for
        dead and ends the others.
    Raises RuntimeError where they do not come.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        coordinator,
        num_processes,
        process_id,
        initialization_timeout=timeout_s,
        heartbeat_timeout_seconds=heartbeat_timeout_s,
        shutdown_timeout_seconds=heartbeat_timeout_s,
        coordinator_bind_address=bind,
        cluster_detection_method="deactivate",
    )


def share(value: bytes) -> list[bytes]:
    """Everybody's value, in order of process ids; all must be of one length. Every process must call it."""
    gathered = multihost_utils.process_allgather(np.frombuffer(value, np.uint8))
    rows = np.asarray(gathered).reshape(jax.process_count(), len(value))
    return [row.tobytes() for row in rows]


def leave() -> None:
    """Part in peace: returns when all have called it."""
    jax.distributed.shutdown()
