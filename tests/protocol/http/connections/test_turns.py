"""Turns in the iterations of a real event loop, and of requests that come at once."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from itertools import pairwise

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from protocol.http.connections.turns import _MOST, _MOST_PASSED, Turns
from tests.protocol.http.conftest import StartUvicorn, connect, read_all, statuses

LIVE = b"GET /v2/health/live HTTP/1.1\r\nconnection: close\r\n\r\n"


class _Iterations:
    """Counts the iterations of the running loop."""

    def __init__(self, each: Callable[[], None] = lambda: None) -> None:
        self.count = 0
        self._each = each
        self._next()

    def _next(self) -> None:
        self.count += 1
        self._each()
        self._handle = asyncio.get_running_loop().call_soon(self._next)

    def stop(self) -> None:
        self._handle.cancel()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop])
def runner(request: pytest.FixtureRequest) -> asyncio.Runner:
    return asyncio.Runner(loop_factory=request.param)


async def _done_in(turns: Turns, count: int, each: Callable[[], None] = lambda: None) -> list[tuple[int, int]]:
    """The number of each piece of work that came in one iteration, and that of the iteration it was done in."""
    done: list[tuple[int, int]] = []
    iterations = _Iterations(each)
    for number in range(count):
        if turns.take():
            done.append((number, iterations.count))
        else:
            turns.wait(lambda number=number: done.append((number, iterations.count)))  # type: ignore[misc]
    while len(done) < count:  # noqa: ASYNC110
        await asyncio.sleep(0)
    iterations.stop()
    return done


def test_what_comes_at_once_is_done_in_order_some_in_each_iteration(runner: asyncio.Runner) -> None:
    with runner:
        done = runner.run(_done_in(Turns(), 3 * _MOST + 1))
    assert [number for number, _ in done] == list(range(3 * _MOST + 1))
    iterations = [iteration for _, iteration in done]
    assert all(iterations.count(each) <= _MOST for each in iterations)
    assert iterations[-1] - iterations[0] <= 4


def test_what_comes_alone_never_waits(runner: asyncio.Runner) -> None:
    async def run() -> list[bool]:
        turns = Turns()
        taken = []
        for _ in range(5 * _MOST):
            taken.append(turns.take())
            await asyncio.sleep(0)
        return taken

    with runner:
        assert all(runner.run(run()))


def test_while_connections_come_few_have_a_turn_but_some(runner: asyncio.Runner) -> None:
    turns = Turns()
    with runner:
        done = runner.run(_done_in(turns, 3 * _MOST, turns.note_connection))
    iterations = sorted({iteration for _, iteration in done})
    assert len(iterations) == 3
    assert all(second - first >= _MOST_PASSED for first, second in pairwise(iterations[1:]))


def test_work_that_fails_keeps_nobody_from_a_turn(runner: asyncio.Runner) -> None:
    async def run() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda _, __: None)
        turns = Turns()
        while turns.take():
            pass
        done: list[int] = []
        turns.wait(lambda: done.remove(1))
        turns.wait(lambda: done.append(2))
        while not done:  # noqa: ASYNC110
            await asyncio.sleep(0)
        return done[0]

    with runner:
        assert runner.run(run()) == 2


class _Hold:
    """An application that blocks the event loop at `/hold`, and notes the order of the other requests."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.released = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        if scope["path"] == "/hold":
            while not self.released:
                pass
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})


def _send_while_held(app: _Hold, port: int, stack: contextlib.ExitStack, requests: list[bytes]) -> list[socket.socket]:
    """Connections over which the requests come in the same iteration."""
    clients = [stack.enter_context(connect(port)) for _ in requests]
    for client in clients:
        client.sendall(b"GET /first HTTP/1.1\r\n\r\n")
        assert statuses(client.recv(65536)) == [200]
    app.paths.clear()
    holder = stack.enter_context(connect(port))
    holder.sendall(b"GET /hold HTTP/1.1\r\n\r\n")
    while not app.paths:
        pass
    for client, request in zip(clients, requests, strict=True):
        client.sendall(request)
    app.released = True
    assert statuses(holder.recv(65536)) == [200]
    return clients


@pytest.mark.parametrize("path", ["/v2/health/live", "/models/ner/v2/health/live/"])
def test_requests_of_a_flood_are_answered_and_health_goes_first(start_uvicorn: StartUvicorn, path: str) -> None:
    app = _Hold()
    port = start_uvicorn(app, root_path="/models/ner")
    requests = [b"GET /%d HTTP/1.1\r\nconnection: close\r\n\r\n" % number for number in range(200)]
    with contextlib.ExitStack() as stack:
        clients = _send_while_held(app, port, stack, [*requests, LIVE.replace(b"/v2/health/live", path.encode())])
        assert all(statuses(read_all(client)) == [200] for client in clients)
    assert len(app.paths) == 202
    assert app.paths.index(path) < 100


def test_bodies_and_pipelines_of_a_flood_are_whole(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn()
    body = b"POST /a HTTP/1.1\r\ncontent-length: 300000\r\n\r\n" + bytes(300_000)
    last = b"GET /b HTTP/1.1\r\nconnection: close\r\n\r\n"
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(port)) for _ in range(50)]
        for client in clients:
            client.sendall(body + body + last)
        for client in clients:
            answer = read_all(client)
            assert statuses(answer) == [200, 200, 200]
            assert answer.count(b"/a 1 300000") == 2
            assert b"/b 1 0" in answer


def test_clients_that_leave_at_once_free_their_connections(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(max_connections=100)
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(port)) for _ in range(90)]
            for client in clients:
                client.sendall(b"POST /a HTTP/1.1\r\ncontent-length: 5\r\n\r\n")
        with connect(port) as client:
            client.sendall(b"GET /b HTTP/1.1\r\nconnection: close\r\n\r\n")
            assert statuses(read_all(client)) == [200]
