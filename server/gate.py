"""The outer layers of every request: measured and named, and let in only while the server takes work."""

import time
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.context import ServerContext
from server.errors import ApiError, send_error

_WORK_METHODS = frozenset({"POST", "PUT", "PATCH"})
_HANDLERS = frozenset(
    {
        "/detokenize",
        "/health",
        "/metrics",
        "/openapi.json",
        "/ready",
        "/server_info",
        "/tokenize",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/models",
        "/version",
    }
)
_METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})


class MeasureMiddleware:
    """Counts and times requests; adds X-Request-Id where the operator asked for it."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 499  # until an answer starts: a client that left gets none
        start_s = time.monotonic()
        request_id = _request_id(scope) if self._context.args.enable_request_id_headers else None

        async def measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if request_id is not None:
                    message = {**message, "headers": [*message["headers"], (b"x-request-id", request_id)]}
            await send(message)

        try:
            await self._app(scope, receive, measured)
        finally:
            path = scope["path"] if scope["path"] in _HANDLERS else "other"  # clients must not make new time series
            method = scope["method"] if scope["method"] in _METHODS else "other"
            metrics = self._context.metrics
            metrics.http_requests.labels(method, path, str(status)).inc()
            metrics.http_seconds.labels(method, path).observe(time.monotonic() - start_s)


def _request_id(scope: Scope) -> bytes:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given if 0 < len(given) <= 128 else uuid4().hex.encode()


class GateMiddleware:
    """Refuses work (503) while the engine starts, the server drains or the engine is dead; counts what runs."""

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] not in _WORK_METHODS:
            await self._app(scope, receive, send)
            return
        try:
            self._context.check_serving()
        except ApiError as error:
            await send_error(send, error, close=True)
            return
        self._context.num_in_flight += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._context.num_in_flight -= 1
