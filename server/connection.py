"""One HTTP connection with the guards that uvicorn leaves out: time and bytes of a request's head."""

from asyncio import TimerHandle, Transport
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.args import ServerArgs
from server.errors import ApiError

_READ_CHUNK_BYTES = 256 * 1024  # what the event loop hands over at most at once


def guarded_protocol(args: ServerArgs) -> type[HttpToolsProtocol]:
    """uvicorn makes the protocol object itself, so the limits travel in a class."""

    class Protocol(GuardedProtocol):
        header_timeout_s = args.header_timeout
        max_header_bytes = args.max_header_bytes

    return Protocol


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose request head is too slow (408) or too long (431).

    A head has header_timeout_s from its first byte, the first one from the connection's start.
    The head's exact size is checked by `LimitsMiddleware`; here only one that never ends.
    """

    header_timeout_s: ClassVar[float]
    max_header_bytes: ClassVar[int]

    _head_timer: TimerHandle | None = None
    _in_head = False
    _num_head_bytes = 0

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head or self.transport.is_closing():
            return
        self._num_head_bytes += len(data)
        if self._num_head_bytes > self.max_header_bytes + _READ_CHUNK_BYTES:
            self._refuse(ApiError(431, f"the request's head exceeds the limit of {self.max_header_bytes} bytes"))

    def on_message_begin(self) -> None:
        self._in_head = True
        self._num_head_bytes = 0
        if self._head_timer is None:
            self._start_head_timer()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.header_timeout_s, self._head_too_slow)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._in_head:
            self._refuse(ApiError(408, f"the request's head did not arrive within {self.header_timeout_s:g} s"))
        else:
            self.transport.close()

    def _refuse(self, error: ApiError) -> None:
        if self.transport.is_closing():
            return
        body = error.encoded()
        phrase = {408: b"Request Timeout", 431: b"Request Header Fields Too Large"}[error.status]
        head = b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self.transport.write(head % (error.status, phrase, len(body)) + body)
        self.transport.close()
