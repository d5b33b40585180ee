"""Requests over HTTP, timed as a client sees them: sent when planned, each chunk stamped as it arrives."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import msgspec

from jaxserve.bench.metrics import Timeline
from jaxserve.core.errors import ConfigError

try:
    import httpx
except ImportError as error:
    raise ConfigError("jaxserve bench serve needs httpx: pip install httpx") from error

_KEEP_ALIVE_S = 2.0  # shorter than any server's own: a reused connection is never one that the server just closed
_CONNECT_TIMEOUT_S = 60.0
_ERROR_CHARS = 300


@dataclass(frozen=True)
class Prepared:
    """A request ready to send. body: JSON; num_prompt_tokens: used where the server does not count them."""

    body: bytes
    num_prompt_tokens: int


class LoadGenerator:
    """Sends streaming requests to one URL. Use as `async with`.

    connections: requests under way at most. Each has a client of its own: one pool of a thousand connections
    spends more time looking for a free one than the server needs for a token.
    """

    def __init__(self, url: str, headers: dict[str, str], connections: int, timeout_s: float) -> None:
        self._url = url
        self._headers = {"content-type": "application/json", **headers}
        self._is_chat = url.rstrip("/").endswith("/chat/completions")
        context = httpx.create_ssl_context()
        limits = httpx.Limits(max_connections=1, keepalive_expiry=_KEEP_ALIVE_S)
        timeout = httpx.Timeout(timeout_s, connect=_CONNECT_TIMEOUT_S)
        self._free = [httpx.AsyncClient(verify=context, limits=limits, timeout=timeout) for _ in range(connections)]
        self._all = list(self._free)

    async def __aenter__(self) -> "LoadGenerator":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._all:
            await client.aclose()

    async def send(self, request: Prepared) -> Timeline:
        """One request from its sending to its end. Never raises for what the server does: `Timeline.error` says it."""
        client = self._free.pop()
        seen = Timeline(sent_s=time.perf_counter(), num_prompt_tokens=request.num_prompt_tokens)
        try:
            async with client.stream("POST", self._url, content=request.body, headers=self._headers) as response:
                if response.status_code != 200:
                    seen.error = f"HTTP {response.status_code}: {_message(await response.aread())}"
                else:
                    await self._read(response, seen)
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            seen.error = f"{type(error).__name__}: {error}".rstrip(": ")
        finally:
            self._free.append(client)
        return seen

    async def _read(self, response: httpx.Response, seen: Timeline) -> None:
        buffer, is_whole = b"", False
        async for part in response.aiter_bytes():
            now_s = time.perf_counter()
            *events, buffer = (buffer + part).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                data = _data(event)
                if data == b"[DONE]":
                    is_whole = True
                elif data and seen.error is None:
                    self._note(msgspec.json.decode(data), now_s, seen)
        if seen.error is None and not is_whole:
            seen.error = "the stream ended without [DONE]"
        if seen.error is None and not seen.chunk_s:
            seen.error = "the stream held no output"

    def _note(self, chunk: Any, now_s: float, seen: Timeline) -> None:
        if not isinstance(chunk, dict):
            seen.error = f"a chunk is no JSON object: {str(chunk)[:_ERROR_CHARS]}"
            return
        if chunk.get("error") is not None:
            seen.error = f"in the stream: {_text_of(chunk['error'])}"
            return
        if any(self._has_output(choice) for choice in chunk.get("choices") or ()):
            seen.chunk_s.append(now_s)
            seen.num_output_tokens = max(seen.num_output_tokens, len(seen.chunk_s))
        if usage := chunk.get("usage"):  # comes last, and replaces the count of chunks
            seen.num_output_tokens = usage.get("completion_tokens", seen.num_output_tokens)
            seen.num_prompt_tokens = usage.get("prompt_tokens", seen.num_prompt_tokens)

    def _has_output(self, choice: dict[str, Any]) -> bool:
        """Whether a chunk brought a token. Its text may be empty (half a character); a chat's first one is a role."""
        if not self._is_chat:
            return "text" in choice
        delta = choice.get("delta") or {}
        texts = [delta[name] for name in ("content", "reasoning", "reasoning_content", "tool_calls") if name in delta]
        return any(texts) or (bool(texts) and texts != [None] and "role" not in delta)


async def run_load(
    generator: LoadGenerator,
    requests: Sequence[Prepared],
    times_s: Sequence[float],
    max_concurrency: int | None,
    done: Callable[[], object],
) -> tuple[list[Timeline], float]:
    """Send each request at its time; their timelines in order, and the wall time from the first to the last.

    Open loop: a slow answer holds nothing back, unless max_concurrency does. done: called as each request ends.
    """
    gate = asyncio.Semaphore(max_concurrency) if max_concurrency else nullcontext()
    start_s = time.perf_counter()

    async def one(request: Prepared, planned_s: float) -> Timeline:
        async with gate:
            seen = await generator.send(request)
        seen.lag_s = seen.sent_s - planned_s
        done()
        return seen

    tasks: list[asyncio.Task[Timeline]] = []
    for request, time_s in zip(requests, times_s, strict=True):
        wait_s = start_s + time_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        tasks.append(asyncio.create_task(one(request, start_s + time_s)))
    timelines = await asyncio.gather(*tasks)
    return timelines, time.perf_counter() - start_s


def _data(event: bytes) -> bytes:
    lines = [line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines)


def _message(body: bytes) -> str:
    """What an error answer says: OpenAI's shape, else the beginning of the body."""
    try:
        content: Any = msgspec.json.decode(body)
        return _text_of(content.get("error", content))
    except (msgspec.DecodeError, AttributeError):
        return body[:_ERROR_CHARS].decode(errors="replace")


def _text_of(error: Any) -> str:
    found = error.get("message", error) if isinstance(error, dict) else error
    return str(found)[:_ERROR_CHARS]
