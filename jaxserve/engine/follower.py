"""The other ranks of a group: no HTTP, no scheduler; each replays the leader's decisions on its own devices."""

import logging
import os
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from jaxserve.core.config import EngineArgs, EngineConfig
from jaxserve.core.errors import ConfigError, EngineDead, JaxserveError
from jaxserve.engine.agreement import hello_of, with_pages
from jaxserve.engine.channel import FollowerChannel, make_keys, own_address
from jaxserve.engine.group_messages import Beat, Collect, Dispatch, Failure, Leave, Welcome
from jaxserve.engine.leader import EXIT_GROUP_ENDED, JOIN_TIMEOUT_S
from jaxserve.engine.parts import make_parts
from jaxserve.engine.ranks import Ranks
from jaxserve.engine.transcript import Transcript
from jaxserve.runner import processes
from jaxserve.runner.heap import settle_heap
from jaxserve.runner.model_runner import InFlight, ModelRunner

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


def follow(args: EngineArgs, ranks: Ranks, say: Say) -> int:
    """Follow until rank 0 sends us away. Call it in the main thread of a process of its own; its exit code.

    A first SIGTERM or SIGINT is left to rank 0, which ends its requests and then the group; a second ends this process.
    """
    _leave_signals_to_the_leader(say)
    say(f"rank {ranks.rank} of {ranks.num_ranks}: joining at {ranks.coordinator}")
    keys = make_keys()
    greetings = processes.join(ranks.coordinator, ranks.num_ranks, ranks.rank, None, keys[0], JOIN_TIMEOUT_S)
    transcript = Transcript()
    channel = FollowerChannel(
        own_address(ranks.address), ranks.channel_port, ranks.rank, keys, greetings[0], transcript, _end_process
    )
    reason = _follow(args, channel, transcript, say)
    channel.close()
    if reason is not None:
        say(f"jaxserve: the group ends: {reason}")
        _end_process(reason)
    processes.leave()
    return 0


def _follow(args: EngineArgs, channel: FollowerChannel, transcript: Transcript, say: Say) -> str | None:
    """Why the group ended, None for in peace."""
    try:
        parts = make_parts(args, say, lambda config: _agree(channel, config))
        settle_heap()
        say("ready: replaying what rank 0 decides")
        return replay(channel, parts.runner, transcript)
    except Exception as error:
        if not isinstance(error, JaxserveError):
            logger.exception("this rank cannot go on")
        reason = f"{type(error).__name__}: {error}"
        channel.send(Failure(reason))
        return reason


def replay(channel: FollowerChannel, runner: ModelRunner, transcript: Transcript) -> str | None:
    """Do what rank 0 does, in its order, until the group ends; why, None for in peace."""
    flights: dict[int, InFlight] = {}
    while True:
        message, frame = channel.receive()
        match message:
            case Dispatch(scheduled=scheduled):
                transcript.decided(frame)
                flights[scheduled.step_id] = runner.dispatch(scheduled)
            case Collect(step_id=step_id):
                transcript.collected(runner.collect(flights[step_id]))
                flights = {number: flight for number, flight in flights.items() if number > step_id}
            case Leave(reason=reason):
                return reason
            case Welcome() | Beat():
                raise EngineDead(f"rank 0 sent {message} in the midst of the steps")


def _agree(channel: FollowerChannel, config: EngineConfig) -> EngineConfig:
    channel.send(hello_of(config))
    match channel.receive()[0]:
        case Welcome(num_pages=num_pages):
            return with_pages(config, num_pages)
        case Leave(reason=reason):
            raise ConfigError(reason or "rank 0 left before the group began")
        case other:
            raise EngineDead(f"rank 0 answered with {other}")


def _end_process(reason: str) -> NoReturn:
    """At once: the main thread may wait for a device for ever, and JAX's way out waits for the others."""
    logger.critical("the group ends: %s", reason)
    time.sleep(0.1)  # what was sent may still go
    os._exit(EXIT_GROUP_ENDED)


def _leave_signals_to_the_leader(say: Say) -> None:
    def first(number: int, frame: FrameType | None) -> None:
        say("jaxserve: this rank ends when rank 0 does; a second signal ends it now")
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, first)
