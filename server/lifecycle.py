"""`Server`: the life of a server process: HTTP first, then the engine, until a signal or the engine's end."""

import asyncio
import logging
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
        self._starting: asyncio.Task[None] | None = None
        self._drain_until_s: float | None = None
        self._exit_at_s: float | None = None
        self._got_signal = False

    async def startup(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Listen (a port in use ends the process before a model is loaded), then start the engine beside it."""
        await super().startup(sockets)  # type: ignore[arg-type]
        self._starting = asyncio.create_task(self._start_engine())

    async def _start_engine(self) -> None:
        try:
            engine = await asyncio.to_thread(AsyncEngine.from_engine_args, self._engine_args, self._say)
            self._engine = engine
            self._context.set_engine(engine)
            await engine.check_health()
        except JaxserveError as error:
            self._fail_start(f"jaxserve cannot start: {error}")
            return
        except Exception:
            _log.exception("the engine could not be started")
            self._fail_start("jaxserve cannot start: an unexpected error, shown above")
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
