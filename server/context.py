"""`ServerContext`: what every handler needs, and the server's state between start and end."""

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jaxserve.core.config import EngineArgs
from jaxserve.core.errors import EngineDead
from jaxserve.engine.async_engine import AsyncEngine
from jaxserve.text.chat import ChatTemplate
from server.args import ServerArgs
from server.errors import ApiError, as_api_error
from server.metrics import ServerMetrics

# Tokenizing and templates are CPU work: more threads than cores would only take turns.
_NUM_TEXT_THREADS = min(4, os.cpu_count() or 1)
DEMO_NAME = "jaxserve-demo"  # the bundled model, served where none is named
_SMALL_CHARS = 16 * 1024  # tokenized in place: cheaper than handing it to a thread and back


class ServerContext:
    """One server's engine, limits, metrics and lifecycle.

    names: what clients may call the model; the first is the one the server answers with.
    num_in_flight: requests whose answer is not complete. is_draining: no new ones are taken.
    stopped: done once running requests must end at once, whatever they have.
    """

    def __init__(self, args: ServerArgs, names: tuple[str, ...], engine: AsyncEngine | None = None) -> None:
        self.args = args
        self.names = names
        self.created = int(time.time())
        self.metrics = ServerMetrics(names[0])
        self.num_in_flight = 0
        self.is_draining = False
        self.is_dead = False
        self._engine: AsyncEngine | None = None
        self._template: ChatTemplate | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._pool = ThreadPoolExecutor(_NUM_TEXT_THREADS, "jaxserve-text")
        self._template_pool = ThreadPoolExecutor(_NUM_TEXT_THREADS, "jaxserve-template")
        if engine is not None:
            self.set_engine(engine)

    @property
    def model(self) -> str:
        return self.names[0]

    @property
    def engine(self) -> AsyncEngine:
        """Raises ApiError (503) while there is none."""
        if self._engine is None:
            raise ApiError(503, "the engine is starting", code="starting", headers={"Retry-After": "5"})
        return self._engine

    def set_engine(self, engine: AsyncEngine) -> None:
        """Begin to serve. Raises ConfigError where the chat template cannot be used."""
        self._template = ChatTemplate.load(engine.tokenizer, engine.args.chat_template)
        self._engine = engine

    @property
    def template(self) -> ChatTemplate:
        _ = self.engine
        assert self._template is not None
        return self._template

    @property
    def max_prompt_chars(self) -> int | None:
        """More characters than this never fit the model's context; None where no bound is known."""
        engine = self.engine
        longest = engine.tokenizer.max_bytes_per_token
        return None if longest is None else max(longest * engine.info.max_model_len, _SMALL_CHARS)

    @property
    def has_engine(self) -> bool:
        return self._engine is not None

    @property
    def stopped(self) -> asyncio.Future[None]:
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_future()
        return self._stopped

    def stop_requests(self) -> None:
        """End every running request now; each client gets an error."""
        if not self.stopped.done():
            self.stopped.set_result(None)

    def check_serving(self) -> None:
        """Raise ApiError (503) unless a request can be taken now."""
        if self.is_dead:
            raise as_api_error(EngineDead())
        if self.is_draining:
            raise self.shutting_down()
        _ = self.engine

    def shutting_down(self) -> ApiError:
        return ApiError(503, "the server is shutting down", code="shutting_down", headers={"Retry-After": "5"})

    def check_model(self, name: str | None) -> None:
        if name is not None and name not in self.names:
            raise ApiError(
                404,
                f"this server has no model of that name; it serves {self.model!r}",
                param="model",
                code="model_not_found",
            )

    async def in_text_thread[T](self, size: int, work: Callable[[], T], small: int = _SMALL_CHARS) -> T:
        """Run CPU work beside the event loop, unless its input (`size` characters) is small."""
        if size <= small:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    async def in_template_thread[T](self, work: Callable[[], T]) -> T:
        """Render a chat template. Raises ApiError (400) where it takes longer than template_timeout."""
        timeout_s = self.args.template_timeout
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._template_pool, work)
        except TimeoutError:
            raise ApiError(
                400, f"rendering the chat template took longer than {timeout_s:g} s", param="messages"
            ) from None

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._template_pool.shutdown(wait=False, cancel_futures=True)


def served_names(args: EngineArgs, default: str) -> tuple[str, ...]:
    """The names of the model; a local directory is known by its last part and by what the user typed."""
    if args.served_model_name:
        return (args.served_model_name,)
    if not args.model:
        return (default,)
    path = Path(args.model)
    return (path.resolve().name, args.model) if path.is_dir() else (args.model,)
