"""More connections than the server takes."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest

from tests.protocol.http.conftest import StartUvicorn, connect, read_all, statuses

GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n"
BODY = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n"


def ask(client: socket.socket, request: bytes = GET) -> list[int]:
    client.sendall(request)
    return statuses(client.recv(65536))


@pytest.mark.parametrize("first", [b"", GET, b"GET / HTTP/1.1\r\n"])
def test_the_connection_that_was_idle_for_longest_makes_room(start_uvicorn: StartUvicorn, first: bytes) -> None:
    port = start_uvicorn(max_connections=3)
    with contextlib.ExitStack() as stack:
        oldest, *others = [stack.enter_context(connect(port)) for _ in range(3)]
        if first == GET:
            assert ask(oldest) == [200]
        else:
            oldest.sendall(first)
        time.sleep(0.05)
        # Those that wait for a body are not idle.
        for other in others:
            assert ask(other) == [200]
            other.sendall(BODY)
        newest = stack.enter_context(connect(port))
        assert ask(newest) == [200]
        assert read_all(oldest) == b""
        for other in others:
            assert ask(other, b"a" * 10) == [200]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET, 503),
        (BODY + b"a" * 10, 503),
        (b"POST /v2/health/live HTTP/1.1\r\ncontent-length: 0\r\n\r\n", 503),
        (b"GET /v2/health/live HTTP/1.1\r\n\r\n", 200),
        (b"GET /v2/health/ready?a=b HTTP/1.1\r\n\r\n", 200),
        (b"HEAD /livez HTTP/1.1\r\n\r\n", 200),
        (b"GET /models/ner/livez/?a=b HTTP/1.1\r\n\r\n", 200),
        (b"GET /models/livez HTTP/1.1\r\n\r\n", 503),
    ],
)
def test_where_none_is_idle_only_health_is_answered(
    start_uvicorn: StartUvicorn, request_bytes: bytes, status: int
) -> None:
    port = start_uvicorn(max_connections=2, root_path="/models/ner")
    with connect(port) as one, connect(port) as two:
        for client in (one, two):
            client.sendall(BODY)
        time.sleep(0.1)
        with connect(port) as third:
            third.sendall(request_bytes)
            answer = read_all(third)
        assert statuses(answer) == [status]
        assert b"\r\nconnection: close\r\n" in answer
        assert (b"\r\nretry-after: 1\r\n" in answer) == (status == 503)
        assert ask(one, b"a" * 10) == [200]
        with connect(port) as fourth:
            assert ask(fourth) == [200]


def test_a_flood_of_connections(start_uvicorn: StartUvicorn, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever asks at once is answered, among a thousand who do not."""
    port = start_uvicorn(max_connections=50)
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            client = stack.enter_context(connect(port))
            if number % 100 == 0:
                assert ask(client) == [200]
        with connect(port) as last:
            assert ask(last) == [200]


def test_a_connection_with_a_request_under_way_is_left_alone(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(max_connections=1)
    with connect(port) as busy:
        busy.sendall(SLOW)
        time.sleep(0.1)
        with connect(port) as other:
            assert statuses(read_all_after(other, GET)) == [503]
        assert statuses(busy.recv(65536)) == [200]


def read_all_after(client: socket.socket, request: bytes) -> bytes:
    client.sendall(request)
    return read_all(client)
