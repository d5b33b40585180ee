"""The typed messages between a group's leader and its followers (msgpack over an authenticated channel)."""

from typing import Any

import msgspec

from jaxserve.schedule.output import SchedulerOutput


class Hello(msgspec.Struct, tag=True):
    """A follower's first word. settings: what must be equal on every rank, by name. num_pages: of its pool, at most."""

    settings: dict[str, Any]
    num_pages: int


class Welcome(msgspec.Struct, tag=True):
    """The leader's answer to all: num_pages, the least of any rank's."""

    num_pages: int


class Dispatch(msgspec.Struct, tag=True):
    """Start this step."""

    scheduled: SchedulerOutput


class Collect(msgspec.Struct, tag=True):
    """Read the tokens of this step; earlier ones that were not read are not awaited any more."""

    step_id: int


class Leave(msgspec.Struct, tag=True):
    """The group ends: in peace where reason is None."""

    reason: str | None = None


class Beat(msgspec.Struct, tag=True):
    """A sign of life, both ways. A follower's says how many steps it has read and the digest of all it replayed."""

    num_steps: int = 0
    digest: bytes = b""


class Failure(msgspec.Struct, tag=True):
    """A follower's last word."""

    reason: str


FromLeader = Welcome | Dispatch | Collect | Leave | Beat
FromFollower = Hello | Beat | Failure
