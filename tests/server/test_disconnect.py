"""A client that leaves stops costing anything within a second."""

import asyncio
import socket
import struct
import time
from typing import Any

import httpx
import pytest
from server_process import ServerProcess, metric

# ignore_eos: nothing but the client's leaving ends these before the context is full.
LONG: dict[str, Any] = {"model": "tiny", "prompt": "Tell me everything", "ignore_eos": True, "max_tokens": 230}


def send_request(server: ServerProcess, stream: bool, n: int = 1) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", server.port))
    body = httpx.Request("POST", "http://x", json=LONG | {"stream": stream, "n": n, "seed": 1}).content
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def wait_running(server: ServerProcess, count: int) -> None:
    deadline_s = time.monotonic() + 10
    while metric(server.metrics(), "jaxserve:num_requests_running") < count:
        assert time.monotonic() < deadline_s, "the requests never ran"
        time.sleep(0.002)


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True])
def test_leaving_frees_every_page_within_a_second(server: ServerProcess, stream: bool, how: str) -> None:
    connections = [send_request(server, stream, n=2) for _ in range(6)]
    if stream:
        for connection in connections[:3]:
            assert connection.recv(64)
    else:
        wait_running(server, 1)
    for connection in connections:
        if how == "rst":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    server.wait_idle(timeout_s=1.0)


def test_a_leaver_does_not_disturb_its_neighbour(server: ServerProcess, http: httpx.Client) -> None:
    body = LONG | {"max_tokens": 60, "temperature": 0}
    alone = http.post("/v1/completions", json=body).json()["choices"]
    leavers = [send_request(server, stream=True) for _ in range(5)]
    for connection in leavers:
        connection.recv(64)
        connection.close()
    assert http.post("/v1/completions", json=body).json()["choices"] == alone


async def test_an_abort_storm_is_survived(server: ServerProcess) -> None:
    """Many clients with a short patience, then one request that must be answered soon."""
    async with httpx.AsyncClient(base_url=server.url) as client:
        # Patience for fewer steps than a request takes: how many leave does not hang on the machine's speed.
        patience = httpx.Timeout(0.1, connect=10, pool=10)

        async def impatient(index: int) -> None:
            with pytest.raises(httpx.TimeoutException):
                await client.post("/v1/completions", json=LONG | {"seed": index, "n": 8}, timeout=patience)

        before = metric(server.metrics(), "jaxserve:requests_total", status="abort")
        await asyncio.gather(*(impatient(index) for index in range(40)))
        answer = await client.post("/v1/completions", json={"prompt": "hi", "max_tokens": 2}, timeout=5)
        assert answer.status_code == 200
    server.wait_idle(timeout_s=2.0)
    assert metric(server.metrics(), "jaxserve:requests_total", status="abort") > before
