"""What a client may send: checked on the raw request, before the application reads or parses it."""

import asyncio
import contextlib
import re
from collections.abc import Collection

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.args import ServerArgs
from server.errors import ApiError, send_error

_LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
# A string (closed or cut off) or a bracket. Possessive: an unclosed string costs one pass, never a pass a quote.
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_OPENING = (b"[", b"{")
_MISSING = "<none>"
_LINGER_S = 1.0
_LINGER_BYTES = 64 * 2**20


def json_depth_exceeds(body: bytes, limit: int) -> bool:
    """Whether brackets nest deeper than `limit`, without parsing; brackets inside strings do not count."""
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    depth = 0
    for match in _STRING_OR_BRACKET.finditer(body):
        token = match.group()
        if token in _OPENING:
            depth += 1
            if depth > limit:
                return True
        elif token in (b"]", b"}"):
            depth -= 1
    return False


def host_name(value: str) -> str:
    """`localhost:8000` to `localhost`, `[::1]:8000` to `::1`."""
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].lower()


def is_loopback(host: str) -> bool:
    return host_name(host) in _LOOPBACK_NAMES or host in _LOOPBACK_NAMES or host.startswith("127.")


class LimitsMiddleware:
    """Header count and size (431), host and origin (403), body size (413), body time (408).

    The body is read whole here, so that handlers meet complete requests only; what they receive
    afterwards is the client's disconnect.
    """

    def __init__(self, app: ASGIApp, args: ServerArgs, allowed_hosts: Collection[str] | None) -> None:
        self._app = app
        self._args = args
        self._hosts = allowed_hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check_headers(scope["headers"])
            self._check_host(scope["headers"])
            body = await self._read_body(scope["headers"], receive)
        except ApiError as error:
            await send_error(send, error, close=True, before_close=lambda: _discard(receive))
            return
        if body is not None:
            await self._app(scope, _replay(body, receive), send)

    def _check_headers(self, headers: list[tuple[bytes, bytes]]) -> None:
        num_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
        if len(headers) > self._args.max_headers or num_bytes > self._args.max_header_bytes:
            limits = f"{self._args.max_headers} headers and {self._args.max_header_bytes} bytes"
            raise ApiError(431, f"the request's headers exceed the limit of {limits}")

    def _check_host(self, headers: list[tuple[bytes, bytes]]) -> None:
        """On loopback, a web page that resolves its own name to 127.0.0.1 must not become a client."""
        if self._hosts is None or "*" in self._hosts:
            return
        hosts = [value.decode("latin-1") for name, value in headers if name == b"host"] or [_MISSING]
        origins = [value.decode("latin-1") for name, value in headers if name == b"origin"]
        allowed_origins = self._args.allowed_origins or ()
        names = [("Host", host_name(host)) for host in hosts]
        names += [("Origin", host_name(one.partition("://")[2])) for one in origins if one not in allowed_origins]
        for header, name in names:
            if name not in _LOOPBACK_NAMES and name not in self._hosts:
                message = f"this server listens on loopback and refuses a foreign {header}; see --allowed-hosts"
                raise ApiError(403, message, code="foreign_host")

    async def _read_body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes | None:
        """The body, or None where the client left before it was complete."""
        limit = self._args.max_body_bytes
        too_large = ApiError(413, f"the body exceeds the limit of {limit} bytes", code="body_too_large")
        declared = next((value for name, value in headers if name == b"content-length"), None)
        if declared is not None and (not declared.isdigit() or int(declared[:20]) > limit):
            raise too_large
        parts: list[bytes] = []
        num_bytes = 0
        try:
            async with asyncio.timeout(self._args.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    num_bytes += len(parts[-1])
                    if num_bytes > limit:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._args.body_timeout:g} s") from None


async def _discard(receive: Receive) -> None:
    """Take what the client is still sending: closing at once could cost it the answer."""
    num_bytes = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while num_bytes < _LINGER_BYTES:
                message = await receive()
                num_bytes += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[bytes] = [body]

    async def replayed() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replayed
