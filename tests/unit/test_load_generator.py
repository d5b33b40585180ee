"""The load generator against a server that answers by script: every way a request can end, each counted once."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from jaxserve.bench.load_generator import LoadGenerator, Prepared, run_load
from jaxserve.bench.metrics import Timeline

REQUEST = Prepared(b'{"prompt": [1]}', num_prompt_tokens=1)


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def token(text: str = "x") -> bytes:
    return event({"choices": [{"index": 0, "text": text}], "usage": None})


def delta(**fields: object) -> bytes:
    return event({"choices": [{"index": 0, "delta": fields}]})


USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 5}})
DONE = b"data: [DONE]\n\n"


class Answer:
    """Parts of an answer's body with pauses before them, in seconds."""

    def __init__(self, *parts: bytes | float, status: str = "200 OK", cuts: bool = False) -> None:
        self.parts = parts
        self.status = status
        self.cuts = cuts  # closes the connection in the middle of the body


class Scripted:
    """A real HTTP server on loopback: the n-th request gets the n-th answer, the last one again and again."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = answers
        self.num_requests = self.num_connections = self.now = self.most = 0
        self.bodies: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
                self.bodies.append(await reader.readexactly(length))
                answer = self.answers[min(self.num_requests, len(self.answers) - 1)]
                self.num_requests += 1
                self.now += 1
                self.most = max(self.most, self.now)
                await self.write(answer, writer)
                self.now -= 1
                if answer.cuts:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def write(self, answer: Answer, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 {answer.status}\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        for part in answer.parts:
            if isinstance(part, bytes):
                writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                await writer.drain()
            else:
                await asyncio.sleep(part)
        if not answer.cuts:
            writer.write(b"0\r\n\r\n")
            await writer.drain()


@asynccontextmanager
async def load_on(
    scripted: Scripted, path: str = "/v1/completions", connections: int = 1, timeout_s: float = 10
) -> AsyncGenerator[LoadGenerator]:
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with LoadGenerator(f"http://127.0.0.1:{port}{path}", {}, connections, timeout_s) as generator:
        yield generator
    server.close()
    await server.wait_closed()


async def send(*parts: bytes | float, path: str = "/v1/completions", timeout_s: float = 10, **answer: Any) -> Timeline:
    async with load_on(Scripted(Answer(*parts, **answer)), path, timeout_s=timeout_s) as generator:
        return await generator.send(REQUEST)


async def test_chunks_are_stamped_as_they_come_and_usage_counts_the_tokens() -> None:
    seen = await send(0.05, token(), 0.3, token(""), token(), USAGE, DONE)
    assert seen.error is None
    assert 0.05 <= seen.ttft_s < 0.3
    assert len(seen.chunk_s) == 3  # an empty text is a token too: half a character
    assert seen.itl_s[0] > 0.2 > seen.itl_s[1]
    assert (seen.num_prompt_tokens, seen.num_output_tokens) == (9, 5)


async def test_without_usage_chunks_are_counted() -> None:
    seen = await send(token(), token(), DONE)
    assert (seen.error, seen.num_prompt_tokens, seen.num_output_tokens) == (None, 1, 2)


async def test_events_may_be_cut_anywhere_and_end_in_crlf() -> None:
    stream = b": ping\n\n" + token("ü") + token() + USAGE + DONE
    for text in (stream, stream.replace(b"\n", b"\r\n")):
        seen = await send(*[text[i : i + 1] for i in range(len(text))])
        assert (seen.error, len(seen.chunk_s), seen.num_output_tokens) == (None, 2, 5)


async def test_a_chats_role_and_its_end_are_no_tokens() -> None:
    parts = (delta(role="assistant", content=""), 0.05, delta(content="a"), delta(content=""), delta(), USAGE, DONE)
    seen = await send(*parts, path="/v1/chat/completions")
    assert seen.error is None
    assert len(seen.chunk_s) == 2
    assert seen.ttft_s >= 0.05
    both = await send(delta(role="assistant", content="a"), DONE, path="/v1/chat/completions")
    assert len(both.chunk_s) == 1
    thinking = await send(delta(reasoning="a"), delta(content=None), DONE, path="/v1/chat/completions")
    assert len(thinking.chunk_s) == 1


ERROR = event({"error": {"message": "the engine failed", "code": "engine_error"}})


@pytest.mark.parametrize(
    ("parts", "fields", "says"),
    [
        ((event({})[6:],), {"status": "500 Oops"}, "HTTP 500: {}"),
        ((b'{"error": {"message": "queue is full"}}',), {"status": "503 Full"}, "HTTP 503: queue is full"),
        ((b"<html>",), {"status": "404 None"}, "HTTP 404: <html>"),
        ((token(), ERROR, DONE), {}, "in the stream: the engine failed"),
        ((token(),), {}, "the stream ended without [DONE]"),
        ((USAGE, DONE), {}, "the stream held no output"),
        ((token(), b"data: {oops\n\n", DONE), {}, "DecodeError"),
        ((b"data: [1]\n\n", DONE), {}, "no JSON object"),
        ((token(),), {"cuts": True}, "RemoteProtocolError"),
        ((token(), 0.6), {"timeout_s": 0.2}, "ReadTimeout"),
    ],
)
async def test_every_failure_has_a_name(parts: tuple[bytes | float, ...], fields: dict[str, Any], says: str) -> None:
    seen = await asyncio.wait_for(send(*parts, **fields), 5)
    assert seen.error is not None
    assert says in seen.error


async def test_nobody_listens() -> None:
    async with LoadGenerator("http://127.0.0.1:9", {}, 1, 5) as generator:
        assert "ConnectError" in str((await generator.send(REQUEST)).error)


async def test_one_failure_among_many_is_one_failure() -> None:
    good = Answer(token(), token(), DONE)
    scripted = Scripted(good, Answer(b"{}", status="503 Full"), good)
    ended: list[None] = []
    async with load_on(scripted, connections=8) as generator:
        timelines, _ = await run_load(generator, [REQUEST] * 8, [0.0] * 8, None, lambda: ended.append(None))
    assert len(timelines) == len(ended) == 8
    assert sum(one.error is not None for one in timelines) == 1


async def test_arrivals_are_kept_however_slow_the_answers_are() -> None:
    scripted = Scripted(Answer(1.0, token(), DONE))
    times = [0.0, 0.1, 0.2, 0.3]
    async with load_on(scripted, connections=4) as generator:
        timelines, duration_s = await run_load(generator, [REQUEST] * 4, times, None, lambda: None)
    sent = [one.sent_s - timelines[0].sent_s for one in timelines]
    assert sent == pytest.approx(times, abs=0.2)
    assert scripted.most == 4
    assert 1.3 <= duration_s < 2.0
    assert max(one.lag_s for one in timelines) < 0.2


async def test_max_concurrency_holds_requests_back_unsent() -> None:
    scripted = Scripted(Answer(0.2, token(), DONE))
    async with load_on(scripted, connections=2) as generator:
        timelines, _ = await run_load(generator, [REQUEST] * 10, [0.0] * 10, 2, lambda: None)
    assert scripted.most == 2
    assert scripted.num_connections <= 2  # reused
    assert max(one.lag_s for one in timelines) >= 0.8
    assert max(one.ttft_s for one in timelines) < 0.6  # waiting here is no part of the server's time


async def test_hundreds_at_once_leave_together() -> None:
    scripted = Scripted(Answer(token(), DONE))
    async with load_on(scripted, connections=300) as generator:
        start_s = time.perf_counter()
        timelines, _ = await run_load(generator, [REQUEST] * 300, [0.0] * 300, None, lambda: None)
    assert all(one.error is None for one in timelines)
    assert max(one.sent_s for one in timelines) - start_s < 3.0
