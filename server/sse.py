"""Server-sent events, framed with one small encode a chunk."""

from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    return b"data: " + _encoder.encode(value) + b"\n\n"


class ChunkFrame:
    """Chunks of one stream: all but the choices and the usage is encoded once.

    with_usage: whether chunks carry a `usage` key (null until it is known), as clients that ask for usage expect.
    """

    def __init__(self, head: dict[str, Any], with_usage: bool) -> None:
        self._head = b"data: " + _encoder.encode(head)[:-1] + b',"choices":['
        self._tail = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    def choice(self, choice: Any, usage: Any = None) -> bytes:
        tail = self._tail if usage is None else self._usage_tail(usage)
        return self._head + _encoder.encode(choice) + tail

    def usage(self, usage: Any) -> bytes:
        """The last chunk: no choice, the token counts of the whole request."""
        return self._head + self._usage_tail(usage)

    def _usage_tail(self, usage: Any) -> bytes:
        return b'],"usage":' + _encoder.encode(usage) + b"}\n\n"
