"""Rank 0 of a group: whatever its runner is told to do, the followers are told first."""

import logging
import os
import time
from collections.abc import Callable
from typing import NoReturn

from jaxserve.core.config import EngineConfig
from jaxserve.core.errors import ConfigError, EngineDead
from jaxserve.core.step_result import RowResult
from jaxserve.engine.agreement import hello_of, settle, with_pages
from jaxserve.engine.channel import LeaderChannel, make_keys, own_address
from jaxserve.engine.group_messages import Collect, Dispatch, Welcome
from jaxserve.engine.ranks import Ranks, host_port
from jaxserve.engine.transcript import Transcript
from jaxserve.runner import processes
from jaxserve.runner.model_runner import InFlight, ModelRunner
from jaxserve.schedule.output import SchedulerOutput

logger = logging.getLogger(__name__)

JOIN_TIMEOUT_S = 600  # the other hosts may still be pulling an image
MEET_TIMEOUT_S = 300.0
EXIT_GROUP_ENDED = 3
_LAST_WORDS_S = 1.0  # JAX ends the followers with us, at once: until then they can say why


class Leader:
    """The group as rank 0 sees it. Raises EngineDead or ConfigError where it does not come together."""

    def __init__(self, ranks: Ranks, progress: Callable[[str], None]) -> None:
        progress(f"rank 0 of {ranks.num_ranks}: waiting for the others at {ranks.coordinator}")
        own, keys = own_address(ranks.address), make_keys()
        bind = host_port(own, ranks.port)
        greetings = processes.join(ranks.coordinator, ranks.num_ranks, 0, bind, keys[0], JOIN_TIMEOUT_S)
        self._transcript = Transcript()
        self._channel = LeaderChannel(own, ranks.channel_port, keys, greetings[1:], self._transcript, self._end_process)

    def agree(self, config: EngineConfig) -> EngineConfig:
        """The numbers that all ranks run with. Raises ConfigError where they cannot."""
        others = self._channel.meet(MEET_TIMEOUT_S)
        try:
            num_pages = settle(hello_of(config), others)
        except ConfigError as error:
            self.close(str(error))
            raise
        self._channel.send(self._channel.encode(Welcome(num_pages)))
        return with_pages(config, num_pages)

    def leading(self, runner: ModelRunner) -> "LeadingRunner":
        return LeadingRunner(runner, self._channel, self._transcript)

    def close(self, reason: str | None = None) -> None:
        """Send the followers away; in peace, where there is no reason, wait until they have gone."""
        self._channel.close(reason)
        if reason is None:
            processes.leave()
        else:
            time.sleep(_LAST_WORDS_S)

    def _end_process(self, reason: str) -> NoReturn:
        """In the channel's thread. The main thread may wait for a device for ever: nothing waits for it."""
        logger.critical("the group ends: %s", reason)
        self._channel.abandon(reason)
        time.sleep(_LAST_WORDS_S)
        os._exit(EXIT_GROUP_ENDED)


class LeadingRunner:
    """A `ModelRunner` whose every step the followers take too."""

    def __init__(self, runner: ModelRunner, channel: LeaderChannel, transcript: Transcript) -> None:
        self._runner, self._channel, self._transcript = runner, channel, transcript

    def dispatch(self, scheduled: SchedulerOutput) -> InFlight:
        """See `ModelRunner.dispatch`."""
        frame = self._channel.encode(Dispatch(scheduled))
        self._transcript.decided(frame)
        self._channel.send(frame)
        return self._runner.dispatch(scheduled)

    def collect(self, flight: InFlight) -> list[RowResult]:
        """See `ModelRunner.collect`."""
        self._channel.send(self._channel.encode(Collect(flight.scheduled.step_id)))
        results = self._runner.collect(flight)
        self._transcript.collected(results)
        return results

    def rebuild(self) -> None:
        """A step that failed on one rank has not failed in the same way on all: a group does not go on."""
        raise EngineDead("a step failed on rank 0 of a group of processes, which cannot be recomputed on all alike")
