"""What a hostile or clumsy client may send: sizes, slowness, foreign hosts, missing keys."""

import hashlib
import json
import random
import socket
import string
import time
from collections.abc import Iterator
from typing import Any

import httpx
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import ServerProcess

from server.auth import KeyCheck
from server.limits import host_name, json_depth_exceeds

KEYS = ("key-one", "key-two")
TEXTS = st.text(string.printable, max_size=5)


@pytest.fixture(scope="module")
def guarded(server: ServerProcess, engine_args: dict[str, Any]) -> Iterator[ServerProcess]:
    """A server with keys, short timeouts and a short queue; the shared one has compiled its steps."""
    limits = {"header_timeout": 1.0, "body_timeout": 1.0, "max_body_bytes": 100_000}
    keys = {"api_key": list(KEYS), "enable_request_id_headers": True}
    process = ServerProcess(engine_args | {"max_num_queued_reqs": 2}, keys | limits)
    try:
        yield process.wait_ready()
    finally:
        process.stop()


def raw(server: ServerProcess, data: bytes, timeout_s: float = 10.0) -> bytes:
    """Everything the server answers until it closes the connection."""
    received = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                received += part
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def post_head(*headers: str) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_declared_body_is_refused_before_it_is_read(server: ServerProcess) -> None:
    start_s = time.monotonic()
    answer = raw(server, post_head("Content-Length: 10000000000") + b"{}")
    assert status_of(answer) == 413
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"
    assert time.monotonic() - start_s < 5


def test_chunked_body_is_refused_at_the_limit(guarded: ServerProcess) -> None:
    head = post_head(f"Authorization: Bearer {KEYS[0]}", "Transfer-Encoding: chunked")
    chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
    assert status_of(raw(guarded, head + chunk * 2)) == 413


def test_client_that_sends_too_much_still_reads_the_answer(guarded: ServerProcess) -> None:
    body = json.dumps({"prompt": "a" * 8_000_000}).encode()
    headers = {"content-type": "application/json", "authorization": f"Bearer {KEYS[0]}"}
    assert httpx.post(f"{guarded.url}/v1/completions", content=body, headers=headers).status_code == 413


@pytest.mark.parametrize(
    "headers",
    [
        ["Content-Length: 2", "Transfer-Encoding: chunked"],
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: -1"],
        ["X-Folded: a", " b"],
    ],
)
def test_ambiguous_framing_is_refused(server: ServerProcess, headers: list[str]) -> None:
    answer = raw(server, post_head(*headers, "Connection: close") + b"{}")
    assert not answer or status_of(answer) == 400


@pytest.mark.parametrize(
    "headers",
    [
        ["X-Long: " + "a" * 65_536],
        ["X-Long: " + "a" * 10_000_000],
        [f"X-{index}: a" for index in range(10_000)],
    ],
    ids=["one of 64 KiB", "one of 10 MB", "10000"],
)
def test_too_many_headers_are_refused(server: ServerProcess, headers: list[str]) -> None:
    start_s = time.monotonic()
    answer = raw(server, post_head(*headers, "Connection: close"))
    assert not answer or status_of(answer) in (400, 431)
    assert time.monotonic() - start_s < 3


def test_slow_heads_and_bodies_are_cut_and_others_served(guarded: ServerProcess) -> None:
    slow = [socket.create_connection(("127.0.0.1", guarded.port), timeout=10) for _ in range(100)]
    for index, connection in enumerate(slow):
        if index % 3 == 0:
            connection.sendall(b"POST /v1/completions HT")
        elif index % 3 == 1:
            connection.sendall(post_head(f"Authorization: Bearer {KEYS[0]}", "Content-Length: 10") + b'{"a')
    assert httpx.get(f"{guarded.url}/health").elapsed.total_seconds() < 1.0
    start_s = time.monotonic()
    answers = [connection.recv(4096) for connection in slow]
    assert time.monotonic() - start_s < 5
    assert {status_of(answer) for index, answer in enumerate(answers) if index % 3 < 2} == {408}
    for connection in slow:
        connection.close()


def test_connections_without_requests_leak_nothing(guarded: ServerProcess) -> None:
    process = psutil.Process(guarded.process.pid)
    httpx.get(f"{guarded.url}/health")
    before = process.num_fds()
    for _ in range(300):
        socket.create_connection(("127.0.0.1", guarded.port)).close()
    deadline_s = time.monotonic() + 5
    while process.num_fds() > before + 5:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_requests_after_an_error_on_one_connection_are_answered(server: ServerProcess) -> None:
    get = b"GET /version HTTP/1.1\r\nHost: localhost\r\n\r\n"
    bad = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n"
    last = b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(server, get * 20 + bad + last)
    assert answer.count(b"HTTP/1.1 200") == 21
    assert answer.count(b"HTTP/1.1 404") == 1


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        "Bearer key-on",
        "Bearer key-onee",
        "Basic key-one",
        "key-one",
        "Bearer  key-one",
    ],
)
def test_without_the_key_there_is_401(guarded: ServerProcess, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    answer = httpx.get(f"{guarded.url}/v1/models?api_key=key-one", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_every_route_and_method_needs_the_key(guarded: ServerProcess) -> None:
    bearer = {"authorization": f"bearer {KEYS[1]}"}
    paths = httpx.get(f"{guarded.url}/openapi.json", headers=bearer).raise_for_status().json()["paths"]
    assert "/v1/completions" in paths
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH")
    with httpx.Client(base_url=guarded.url) as client:
        for path in [*paths, "/openapi.json", "/docs", "/nowhere", "//v1/models", "/health/", "/ready?a=b", "/HEALTH"]:
            is_open = path in ("/health", "/ready", "/ready?a=b")
            for method in methods:
                status = client.request(method, f"{guarded.url}{path}").status_code
                assert (status != 401) is is_open, (method, path, status)
    two = [("authorization", f"Bearer {KEYS[0]}"), ("authorization", "Bearer wrong")]
    assert httpx.get(f"{guarded.url}/v1/models", headers=two).status_code == 401


def test_request_ids_are_echoed(guarded: ServerProcess) -> None:
    assert httpx.get(f"{guarded.url}/health", headers={"x-request-id": "abc"}).headers["x-request-id"] == "abc"
    assert httpx.get(f"{guarded.url}/health").headers["x-request-id"]


def test_foreign_hosts_and_origins_are_refused_on_loopback(server: ServerProcess) -> None:
    def status(**headers: str) -> int:
        return httpx.get(f"{server.url}/v1/models", headers=headers).status_code

    assert status(host="evil.example") == 403
    assert status(host="evil.example:8000", origin="http://evil.example:8000") == 403
    assert status(origin="http://evil.example") == 403
    assert status(origin="null") == 403
    assert status(origin=server.url) == status(host=f"localhost:{server.port}") == status(host="[::1]:80") == 200
    answer = httpx.options(f"{server.url}/v1/models", headers={"origin": "http://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_only_the_api_port_listens(server: ServerProcess) -> None:
    process = psutil.Process(server.process.pid)
    listening = [
        connection.laddr
        for one in [process, *process.children(recursive=True)]
        for connection in one.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", server.port)]


def test_queue_limit_refuses_with_retry_after(guarded: ServerProcess) -> None:
    body = json.dumps({"prompt": "hi", "ignore_eos": True, "max_tokens": 60}).encode()
    head = post_head("Connection: close", f"Authorization: Bearer {KEYS[0]}", f"Content-Length: {len(body)}")
    engine = psutil.Process(guarded.engine_pid())
    engine.suspend()
    connections = [socket.create_connection(("127.0.0.1", guarded.port), timeout=30) for _ in range(24)]
    for connection in connections:
        connection.sendall(head + body)
    time.sleep(0.3)
    engine.resume()
    answers = [b"".join(iter(lambda c=connection: c.recv(65536), b"")) for connection in connections]
    for connection in connections:
        connection.close()
    assert {status_of(answer) for answer in answers} == {200, 503}
    refused = next(answer for answer in answers if status_of(answer) == 503)
    assert b"retry-after: 1" in refused.lower()


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.text(string.printable, max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_depth_is_that_of_the_parsed_value(value: object) -> None:
    def depth(value: object) -> int:
        inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    data = json.dumps(value).encode()
    assert json_depth_exceeds(data, depth(value) - 1) or depth(value) == 0
    assert not json_depth_exceeds(data, depth(value))


def test_json_depth_is_linear_on_hostile_strings() -> None:
    """An unclosed string full of quotes must not cost a pass a quote."""
    start_s = time.monotonic()
    assert not json_depth_exceeds(b'[[["' + b'\\"' * 2_000_000, 10)
    assert not json_depth_exceeds(b"[" * 3 + b'"[' + b'\\"[' * 1_000_000, 10)
    assert time.monotonic() - start_s < 3


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1, max_size=4), st.text())
def test_keys_are_accepted_exactly(keys: list[str], other: str) -> None:
    check = KeyCheck(keys)
    for key in keys:
        assert check.accepts([b"Bearer " + key.encode()])
        assert check.accepts([b"bearer " + key.encode()])
        assert not check.accepts([b"Bearer " + key.encode()] * 2)
        assert check.accepts([b"Bearer " + key[:-1].encode()]) is (key[:-1] in keys)
    assert check.accepts([b"Bearer " + other.encode()]) is (other in keys)
    assert not check.accepts([b"Bearer " + hashlib.sha256(keys[0].encode()).digest()])


def test_host_names() -> None:
    names = {"localhost:80": "localhost", "[::1]:80": "::1", "A.example": "a.example", "1.2.3.4": "1.2.3.4", "": ""}
    assert {value: host_name(value) for value in names} == names


def test_random_bytes_never_make_a_5xx(server: ServerProcess) -> None:
    rng = random.Random(5)
    base = post_head("Content-Length: 30") + b'{"prompt": "a", "max_tokens":1}'
    for _ in range(60):
        data = bytearray(base)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        assert not answer or status_of(answer) < 500
    assert httpx.get(f"{server.url}/health").status_code == 200
