"""One shape for every error: `{"error": {"message", "type", "param", "code"}}`, and nothing of our insides in it."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Send

from jaxserve.core.errors import EngineDead, EngineError, QueueFull, ReplicaLost, RequestError

_log = logging.getLogger(__name__)

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """An answer with an error status. param: the request field at fault; code: a machine-readable reason."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        return _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "internal_server_error")

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}

    def encoded(self) -> bytes:
        return msgspec.json.encode(self.body())

    def response(self) -> Response:
        return Response(self.encoded(), self.status, self.headers, "application/json")


def as_api_error(error: BaseException) -> ApiError:
    """What the client is told about `error`. Only errors raised on purpose keep their message."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(400, str(error), param=error.param, code=error.code)
        case QueueFull():
            headers = {"Retry-After": str(error.retry_after_s)}
            return ApiError(503, str(error), code="queue_full", headers=headers)
        case EngineDead():
            return ApiError(503, "the engine has stopped; the server must be restarted", code="engine_dead")
        case ReplicaLost():
            return ApiError(503, str(error), code="replica_lost", headers={"Retry-After": "1"})
        case EngineError():
            return ApiError(
                500, "the engine failed on this request; the server's log has the details", code="engine_error"
            )
        case HTTPException():
            return ApiError(error.status_code, _phrase(error.status_code), headers=error.headers)
        case _:
            return ApiError(500, "internal error; see the server's log", code="internal_error")


def field_path(location: Sequence[Any]) -> str | None:
    """`("messages", 0, "content")` to `messages[0].content`; parts that are pydantic's own names are left out."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier():
            path += f".{part}" if path else part
    return path or None


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "error"


async def send_error(
    send: Send,
    error: ApiError,
    *,
    close: bool = False,
    before_close: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Answer from outside the application, where there is no request object yet."""
    body = error.encoded()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": before_close is not None})
    if before_close is not None:
        await before_close()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _answer(request: Request, error: Exception) -> Response:
    answer = as_api_error(error)
    if answer.status == 500:
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return answer.response()


async def _answer_invalid(request: Request, error: Exception) -> Response:
    """Path and query parameters are FastAPI's to validate; bodies are read in `protocol`."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return ApiError(400, str(first["msg"]), param=field_path(first["loc"][1:])).response()


def install_handlers(app: FastAPI) -> None:
    for kind in (ApiError, RequestError, QueueFull, EngineDead, ReplicaLost, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    app.add_exception_handler(RequestValidationError, _answer_invalid)


_ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """`responses=` of a route that may answer with these error statuses (401, 403, 408, 431 and 500 always)."""
    content = {"application/json": {"schema": _ERROR_SCHEMA}}
    every = sorted({401, 403, 408, 431, 500, *statuses})
    return {status: {"description": _phrase(status), "content": content} for status in every}
