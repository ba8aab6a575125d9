"""Bodies of several connections, which hold more together than they may."""

from __future__ import annotations

import gzip
import socket

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import read_body
from protocol.http.body_budget import BodyBudget
from protocol.http.endpoints import Endpoints
from protocol.http.middleware.authentication import Access
from protocol.http.request_pass import RequestPass
from runners.core.arguments import Arguments
from tests.protocol.http.conftest import StartUvicorn, connect, read_all, statuses
from tests.waiting import wait_until

BUDGET = 100_000


async def count(request: Request) -> Response:
    return Response(str((await read_body(request, Arguments(max_request_bytes=10 * BUDGET))).size))


async def fail(request: Request) -> Response:
    await read_body(request, Arguments())
    raise RuntimeError("a bug")


@pytest.fixture
def budget() -> BodyBudget:
    return BodyBudget(BUDGET)


@pytest.fixture
def application(budget: BodyBudget) -> RequestPass:
    endpoints = Endpoints({"server": [Route("/", count, methods=["POST"]), Route("/fail", fail, methods=["POST"])]})
    return RequestPass(endpoints, endpoints, Access(Arguments()), budget)


def post(size: int, body: bytes = b"", headers: bytes = b"", path: bytes = b"/") -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%s\r\n" % (path, size, headers) + body


def ask(port: int, request: bytes) -> bytes:
    with connect(port) as client:
        client.sendall(request.replace(b"host: x", b"host: x\r\nconnection: close"))
        return read_all(client)


def hold(port: int, size: int, path: bytes = b"/") -> socket.socket:
    """A body that does not end."""
    client = connect(port)
    client.sendall(post(size + 1, b" " * size, path=path))
    return client


def wait_for(budget: BodyBudget, left: int) -> None:
    wait_until(lambda: budget.left == left)


ZIPPED = gzip.compress(bytes(90_000))


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post(80_000), 503),
        (post(70_000, b" " * 70_000), 503),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n11170\r\n" + b" " * 70_000 + b"\r\n0\r\n\r\n", 503),
        (post(len(ZIPPED), ZIPPED, b"content-encoding: gzip\r\n"), 503),
        (post(16_000, b" " * 16_000), 200),
        (post(20_000, b" " * 20_000), 200),
    ],
)  # fmt: skip
def test_what_is_left_while_others_hold_the_rest(
    start_uvicorn: StartUvicorn, application: RequestPass, budget: BodyBudget, request_bytes: bytes, status: int
) -> None:
    port = start_uvicorn(application)
    first = hold(port, 90_000)
    wait_for(budget, BUDGET - 90_000 + 2**14)
    answer = ask(port, request_bytes)
    assert statuses(answer)[-1] == status
    if status == 503:
        assert b"\r\nretry-after: 1\r\n" in answer
        assert b"the 100000 bytes that --max_buffered_bytes allows" in answer
    wait_for(budget, BUDGET - 90_000 + 2**14)
    first.close()
    wait_for(budget, BUDGET)
    assert statuses(ask(port, post(70_000, b" " * 70_000))) == [200]


def test_it_is_given_back_after_every_end(
    start_uvicorn: StartUvicorn, application: RequestPass, budget: BodyBudget
) -> None:
    port = start_uvicorn(application, body_timeout=0.3)
    for end in (post(80_000, b" " * 80_000, path=b"/fail"), post(len(ZIPPED), ZIPPED, b"content-encoding: gzip\r\n")):
        ask(port, end)
        wait_for(budget, BUDGET)
    stopped = hold(port, 90_000)
    assert statuses(read_all(stopped)) == [408]
    stopped.close()
    wait_for(budget, BUDGET)
