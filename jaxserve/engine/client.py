"""How a front end talks to an engine: one interface, three transports.

`InlineClient` runs the steps in the caller's own thread, `ThreadClient` in a thread beside it, and
`ProcessClient` (jaxserve/engine/process_client.py) in a process of its own.
"""

import asyncio
import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import Protocol

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import CheckpointError, ConfigError, EngineDead, JaxserveError
from jaxserve.engine.loop import Core, handle, make_core, run_engine
from jaxserve.engine.messages import (
    CallResult,
    EngineFailed,
    EngineInfo,
    FromEngine,
    Outputs,
    Ready,
    Shutdown,
    StartupFailed,
    StartupProgress,
    ToEngine,
)

Progress = Callable[[str], None]
OnMessage = Callable[[FromEngine], None]

CLOSE_TIMEOUT_S = 10.0


def silent(text: str) -> None:
    """The progress callback of a caller who does not want to hear."""


class EngineClient(Protocol):
    """An engine, seen from the front end. Used from one thread (an event loop's, once attached)."""

    info: EngineInfo

    def start(self, progress: Progress = silent) -> EngineInfo:
        """Bring the engine up and wait until it is ready; progress gets a line for each thing it does.

        Raises:
            ConfigError, CheckpointError: it cannot start as asked.
            EngineDead: it ended without saying why.
        """
        ...

    def send(self, message: ToEngine) -> None:
        """Hand over a message without waiting for its effect. Raises EngineDead once the engine has ended."""
        ...

    def receive(self) -> FromEngine:
        """Wait for the engine's next message (an inline engine makes a step for it). Raises EngineDead at its end."""
        ...

    def close(self) -> None:
        """End the engine and free what it holds; closing twice does nothing."""
        ...


class AttachableClient(EngineClient, Protocol):
    """A client whose engine runs by itself and can call back into an event loop."""

    def attach(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage) -> None:
        """From now on deliver every message, in order, by calling on_message in this loop.

        An engine's end is delivered as one EngineFailed. Attaching again moves to the new loop.
        """
        ...


def startup_error(failed: StartupFailed) -> JaxserveError:
    """The exception that a failed start stands for."""
    kinds: dict[str, type[JaxserveError]] = {"ConfigError": ConfigError, "CheckpointError": CheckpointError}
    if failed.kind in kinds:
        return kinds[failed.kind](failed.message)
    return EngineDead(f"the engine could not start: {failed.kind}: {failed.message}")


def wait_until_ready(receive: Callable[[], FromEngine], progress: Progress) -> EngineInfo:
    """Relay progress until the engine says it is ready; raises what keeps it from starting."""
    while True:
        match receive():
            case StartupProgress(text=text):
                progress(text)
            case Ready(info=info):
                return info
            case StartupFailed() as failed:
                raise startup_error(failed)
            case EngineFailed(message=message):
                raise EngineDead(message)
            case _:
                continue


class InlineClient:
    """The engine in the caller's thread: `receive` makes one step where nothing waits; its Outputs may be empty."""

    info: EngineInfo

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        self._core: Core | None = None
        self._inbox: deque[FromEngine] = deque()

    def start(self, progress: Progress = silent) -> EngineInfo:
        self._core = make_core(self._args, progress)
        self.info = self._core.info
        return self.info

    def send(self, message: ToEngine) -> None:
        answer = handle(self._running(), message)
        if isinstance(answer, CallResult):
            self._inbox.append(answer)
        elif answer:
            self._inbox.append(Outputs(answer))

    def receive(self) -> FromEngine:
        core = self._running()
        if self._inbox:
            return self._inbox.popleft()
        if not core.has_work:
            raise EngineDead("nothing to wait for: the engine has no request and no unanswered call")
        return Outputs(core.step())

    def close(self) -> None:
        core, self._core = self._core, None
        self._inbox.clear()
        if core is not None:
            core.close()

    def _running(self) -> Core:
        if self._core is None:
            raise EngineDead("the engine is shut down")
        return self._core


class ThreadClient:
    """The engine's loop in a daemon thread of this process (notebooks: no second interpreter, no second JAX)."""

    info: EngineInfo

    def __init__(self, args: EngineArgs) -> None:
        self._args = args
        self._to_engine: queue.SimpleQueue[ToEngine] = queue.SimpleQueue()
        self._from_engine: queue.SimpleQueue[FromEngine] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_message: OnMessage | None = None
        self._last_words: str | None = None

    def start(self, progress: Progress = silent) -> EngineInfo:
        self._thread = threading.Thread(target=self._run, name="jaxserve-engine", daemon=True)
        self._thread.start()
        self.info = wait_until_ready(self._from_engine.get, progress)
        return self.info

    def send(self, message: ToEngine) -> None:
        if self._last_words is not None:
            raise EngineDead(self._last_words)
        self._to_engine.put(message)

    def receive(self) -> FromEngine:
        if self._last_words is not None:
            raise EngineDead(self._last_words)
        message = self._from_engine.get()
        if isinstance(message, EngineFailed):
            self._last_words = message.message
            raise EngineDead(message.message)
        return message

    def attach(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage) -> None:
        self._loop, self._on_message = loop, on_message
        loop.call_soon(self._drain)

    def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        if self._last_words is None:
            self._last_words = "the engine is shut down"
        self._to_engine.put(Shutdown())
        if thread is not threading.current_thread():
            thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        run_engine(self._args, self._receive_in_thread, self._emit)

    def _receive_in_thread(self, wait: bool) -> list[ToEngine]:
        messages: list[ToEngine] = [self._to_engine.get()] if wait else []
        with contextlib.suppress(queue.Empty):
            while True:
                messages.append(self._to_engine.get_nowait())
        return messages

    def _emit(self, message: FromEngine) -> None:
        self._from_engine.put(message)
        loop = self._loop
        if loop is not None:
            # A closed loop wants no news; the message waits in the queue for the next loop.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        """In the event loop: deliver what is there."""
        with contextlib.suppress(queue.Empty):
            while self._on_message is not None:
                message = self._from_engine.get_nowait()
                if isinstance(message, EngineFailed):
                    self._last_words = message.message
                self._on_message(message)
