"""Joining the processes of a group, before JAX's first look at a device."""

from jaxserve.core.errors import EngineDead
from sharding import multihost


def join(
    coordinator: str, num_processes: int, process_id: int, bind: str | None, greeting: bytes, timeout_s: int
) -> list[bytes]:
    """Join, and learn every process's greeting, in order; all are of one length.

    bind: where process 0 listens. Raises EngineDead where somebody does not come within timeout_s.
    """
    try:
        multihost.join(coordinator, num_processes, process_id, bind=bind, timeout_s=timeout_s)
        return multihost.share(greeting)
    except RuntimeError as error:
        raise EngineDead(
            f"the {num_processes} processes of the group did not meet at {coordinator}: {error}. Is every rank "
            f"started, and can each reach this address?"
        ) from error


def leave() -> None:
    """Part in peace."""
    multihost.leave()
