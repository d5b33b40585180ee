"""How a request's work is tied to its client: it ends when the client leaves or the server must stop."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Coroutine
from typing import Any

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import sse
from server.context import ServerContext
from server.errors import ApiError, as_api_error

_log = logging.getLogger(__name__)


async def _client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _run_tied[T](context: ServerContext, receive: Receive, work: Coroutine[Any, Any, T]) -> T | None:
    """The work's result, or None where the client left first. Raises ApiError (503) where the server stops first."""
    task = asyncio.create_task(work)
    left = asyncio.create_task(_client_left(receive))
    try:
        await asyncio.wait({task, left, context.stopped}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if context.stopped.done():
            raise context.shutting_down()
        return None
    finally:
        for pending in (task, left):
            pending.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await pending


class JsonAnswer(Response):
    """One JSON body, computed after the response object is returned; aborted with its client."""

    def __init__(self, context: ServerContext, work: Coroutine[Any, Any, Any]) -> None:
        super().__init__(media_type="application/json")
        self._context = context
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            value = await _run_tied(self._context, receive, self._work)
        except Exception as error:
            await _error_response(error)(scope, receive, send)
            return
        if value is not None:
            await Response(msgspec.json.encode(value), media_type="application/json")(scope, receive, send)


class EventStream(Response):
    """Server-sent events. An error before the first event is an ordinary error answer, a later one an event."""

    def __init__(self, context: ServerContext, events: AsyncGenerator[bytes]) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        # A length of an empty body would end the stream at once.
        self.raw_headers = [pair for pair in self.raw_headers if pair[0] != b"content-length"]
        self._context = context
        self._events = events
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            complete = await _run_tied(self._context, receive, self._send_events(send))
        except Exception as error:
            await self._fail(error, scope, receive, send)
            return
        if complete:
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, send: Send) -> bool:
        async with contextlib.aclosing(self._events) as events:
            async for event in events:
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                await send({"type": "http.response.body", "body": event, "more_body": True})
        return True

    async def _fail(self, error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._started:
            await _error_response(error)(scope, receive, send)
            return
        body = sse.event(_logged(error).body())
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _logged(error: Exception) -> ApiError:
    answer = as_api_error(error)
    if answer.status == 500 and not isinstance(error, ApiError):
        _log.error("a request failed", exc_info=error)
    return answer


def _error_response(error: Exception) -> Response:
    return _logged(error).response()
