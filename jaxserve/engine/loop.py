"""The engine's loop, the same in a child process and in a thread: messages in, steps, messages out."""

import importlib
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import JaxserveError
from jaxserve.core.outputs import EngineOutput
from jaxserve.engine.messages import (
    AbortRequests,
    AddRequest,
    Call,
    CallResult,
    EngineFailed,
    EngineInfo,
    FromEngine,
    Outputs,
    Ready,
    SchedulerStats,
    Shutdown,
    StartupFailed,
    StartupProgress,
    ToEngine,
)
from jaxserve.engine.ranks import ranks_of

logger = logging.getLogger(__name__)

STATS_INTERVAL_S = 0.1
COMPILER_THREADS = "jaxserve-compile-"  # how the names of the threads that compile begin (jaxserve/runner/compiling.py)

Emit = Callable[[FromEngine], None]
Receive = Callable[[bool], list[ToEngine]]


class Core(Protocol):
    """What the loop needs of `jaxserve.engine.core.EngineCore`."""

    info: EngineInfo

    @property
    def has_work(self) -> bool: ...
    def add(self, message: AddRequest, /) -> EngineOutput | None: ...
    def abort(self, request_ids: list[str], /) -> list[EngineOutput]: ...
    def step(self) -> list[EngineOutput]: ...
    def stats(self) -> SchedulerStats: ...
    def call(self, method: str, args: list[Any]) -> Any: ...
    def close(self, reason: str | None = None) -> None: ...


def make_core(args: EngineArgs, progress: Callable[[str], None]) -> Core:
    """Build the EngineCore. Found by name, so that a front end may import this module without loading jax.

    Raises:
        ConfigError, CheckpointError: the engine cannot start as asked.
    """
    started = time.monotonic()
    module = importlib.import_module("jaxserve.engine.core")
    imported = time.monotonic()
    core: Core = module.EngineCore(args, progress, ranks_of(args))
    core.info.startup_s = {"import": round(imported - started, 3), **core.info.startup_s}
    return core


class StatsNews:
    """Which snapshot is worth sending: a changed one, at most one each STATS_INTERVAL_S, at once when idle."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._last = SchedulerStats()
        self._sent_s = 0.0

    def due(self) -> SchedulerStats | None:
        now_s = time.monotonic()
        if self._core.has_work and now_s - self._sent_s < STATS_INTERVAL_S:
            return None
        stats = self._core.stats()
        if stats == self._last:
            return None
        self._last, self._sent_s = stats, now_s
        return stats


def handle(core: Core, message: ToEngine) -> list[EngineOutput] | CallResult:
    """Do what one message asks (Shutdown aside): news of requests, or the answer to a Call."""
    match message:
        case AddRequest():
            refused = core.add(message)
            return [] if refused is None else [refused]
        case AbortRequests():
            return core.abort(message.request_ids)
        case Call():
            return _answer(core, message)
        case Shutdown():
            return []


def _answer(core: Core, message: Call) -> CallResult:
    try:
        value = core.stats() if message.method == "stats" else core.call(message.method, message.args)
    except (JaxserveError, ValueError, TypeError) as error:
        return CallResult(message.call_id, error=str(error))
    return CallResult(message.call_id, value=msgspec.to_builtins(value))


def serve(core: Core, receive: Receive, emit: Emit) -> None:
    """Run until Shutdown. receive(wait): all messages that are there; with wait, at least one."""
    news = StatsNews(core)
    while True:
        outputs: list[EngineOutput] = []
        for message in receive(not core.has_work):
            if isinstance(message, Shutdown):
                return
            answer = handle(core, message)
            if isinstance(answer, CallResult):
                emit(answer)
            else:
                outputs += answer
        if core.has_work:
            outputs += core.step()
        stats = news.due()
        if outputs or stats is not None:
            emit(Outputs(outputs, stats))


def run_engine(args: EngineArgs, receive: Receive, emit: Emit) -> bool:
    """An engine's whole life; what goes wrong is emitted as its last words. True: it was asked to leave."""
    try:
        core = make_core(args, lambda text: emit(StartupProgress(text)))
    except Exception as error:
        if not isinstance(error, JaxserveError):
            logger.exception("the engine could not start")
        emit(StartupFailed(type(error).__name__, str(error)))
        return False
    reason: str | None = "the engine was interrupted"
    try:
        emit(Ready(core.info))
        serve(core, receive, emit)
        reason = None
    except Exception as error:
        logger.exception("the engine cannot go on")
        reason = f"{type(error).__name__}: {error}"
        emit(EngineFailed(reason))
    finally:
        core.close(reason)
    return reason is None
