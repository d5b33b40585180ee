"""`Server`: the life of a server process: HTTP first, then the engine, until a signal or the engine's end."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import JaxserveError
from jaxserve.engine.async_engine import AsyncEngine
from server.context import ServerContext

_log = logging.getLogger(__name__)

Say = Callable[[str], None]

EXIT_OK = 0
EXIT_ENGINE_DIED = 1
EXIT_CANNOT_START = 2
_DEATH_NOTICE_S = 3.0  # how long a server without an engine still answers 503, so that those who probe it see why


class Server(uvicorn.Server):
    """uvicorn with this server's life: start the engine, drain on the first signal, end on the second."""

    def __init__(self, config: uvicorn.Config, context: ServerContext, engine_args: EngineArgs, say: Say) -> None:
        super().__init__(config)
        self.exit_code = EXIT_OK
        self._context = context
        self._engine_args = engine_args
        self._say = say
        self._engine: AsyncEngine | None = None
        self._drain_until_s: float | None = None
        self._exit_at_s: float | None = None
        self._got_signal = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen (a port in use ends the process before a model is loaded), then start the engine beside it."""
        await super().startup(sockets)  # type: ignore[arg-type]
        # A daemon thread: a signal while the model loads must not wait for it.
        start = threading.Thread(target=self._start_engine, args=(asyncio.get_running_loop(),), daemon=True)
        start.start()

    def _start_engine(self, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: start, and hand the engine, or why there is none, to the event loop."""
        try:
            outcome = AsyncEngine.from_engine_args(self._engine_args, self._say)
        except JaxserveError as error:
            outcome = error
        except Exception as error:
            if self._got_signal:  # the process is ending under this thread's feet
                return
            _log.exception("the engine could not be started")
            outcome = JaxserveError(f"an unexpected {type(error).__name__}; the log has the details")
        if not loop.is_closed():
            asyncio.run_coroutine_threadsafe(self._take_engine(outcome), loop)

    async def _take_engine(self, outcome: AsyncEngine | JaxserveError) -> None:
        if isinstance(outcome, JaxserveError):
            self._fail_start(f"jaxserve cannot start: {outcome}")
            return
        self._engine = outcome
        try:
            self._context.set_engine(outcome)
            await outcome.check_health()  # from here on the engine is heard by this event loop
        except JaxserveError as error:
            self._fail_start(f"jaxserve cannot start: {error}")
            return
        self._say(f"ready: {self._context.model} at {self._address()}")

    def _fail_start(self, message: str) -> None:
        self._say(message)
        self.exit_code = EXIT_CANNOT_START
        self._exit_at_s = 0.0

    def _address(self) -> str:
        args = self._context.args
        if args.uds is not None:
            return f"unix:{args.uds}"
        port = self.servers[0].sockets[0].getsockname()[1]
        host = f"[{args.host}]" if ":" in args.host else args.host
        return f"http://{host}:{port}/v1"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: drain. Second: leave now."""
        if self._got_signal:
            self.should_exit = self.force_exit = True
        self._got_signal = True

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: look at the engine and at the clock."""
        if self.force_exit:
            self._context.stop_requests()
        if await super().on_tick(counter):
            return True
        now_s = time.monotonic()
        self._watch_engine(now_s)
        if self._exit_at_s is not None and now_s >= self._exit_at_s:
            self._context.stop_requests()
            return True
        return self._got_signal and self._is_drained(now_s)

    def _watch_engine(self, now_s: float) -> None:
        context = self._context
        if context.is_dead or self._engine is None or self._engine.is_running:
            return
        context.is_dead = True
        _log.error("the engine has died; every request is answered with 503 from now on")
        if context.args.exit_on_engine_death:
            self.exit_code = EXIT_ENGINE_DIED
            self._exit_at_s = now_s + _DEATH_NOTICE_S

    def _is_drained(self, now_s: float) -> bool:
        context = self._context
        if self._drain_until_s is None:
            context.is_draining = True
            self._drain_until_s = now_s + context.args.shutdown_timeout
            _log.info("shutting down: %d requests may finish", context.num_in_flight)
        if now_s >= self._drain_until_s:
            context.stop_requests()
            return True
        return context.num_in_flight == 0

    def close(self) -> None:
        """After the event loop's end: the engine goes, whatever state it is in."""
        self._context.close()
        if self._engine is not None:
            self._engine.shutdown()
