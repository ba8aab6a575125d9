"""A real uvicorn on a socket that others hold too, as BentoML's parent process does."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
import uvicorn

from protocol.http.connections.gate import Gate
from tests.waiting import wait_until


class Running:
    """Uvicorn in a thread, whose gate is closed at first."""

    def __init__(self, listener: socket.socket, **config: Any) -> None:
        self.gate = Gate()
        self.loop = asyncio.new_event_loop()
        options: dict[str, Any] = {"log_level": "critical", "lifespan": "on", "interface": "asgi3", **config}
        self.server = uvicorn.Server(uvicorn.Config(self._answer, **options))
        self._listener = listener
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        wait_until(lambda: self.server.started)

    def call(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def end(self) -> None:
        self.server.should_exit = True
        self._thread.join()

    def _run(self) -> None:
        # As BentoML makes it of the descriptor: its mode stays.
        self.loop.run_until_complete(self.server.serve([socket.socket(fileno=os.dup(self._listener.fileno()))]))

    async def _answer(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self.gate.attach_next_server(0.3)
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def is_answered(listener: socket.socket) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5).status_code == 200
    except httpx.ReadTimeout:
        return False


def test_connections_wait_while_the_gate_is_shut(listener: socket.socket) -> None:
    running = Running(listener)
    try:
        assert not is_answered(listener)
        running.call(running.gate.open())
        assert running.gate.is_open
        assert is_answered(listener)
        with httpx.Client() as kept:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            kept.get(url)
            running.call(running.gate.shut())
            assert not running.gate.is_open
            assert kept.get(url).status_code == 200, "open connections stay"
        assert not is_answered(listener)
        running.call(running.gate.open())
        assert is_answered(listener)
    finally:
        running.end()
    running.loop.run_until_complete(running.gate.open())
    assert not running.gate.is_open, "uvicorn has closed it for good"


def test_two_servers_share_what_waits(listener: socket.socket) -> None:
    """A request that came while both were shut is answered by the one that opens."""
    first, second = Running(listener), Running(listener)
    try:
        statuses: list[int] = []
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        asking = threading.Thread(target=lambda: statuses.append(httpx.get(url, timeout=10).status_code))
        asking.start()
        first.call(first.gate.open())
        asking.join()
        assert statuses == [200]
        second.call(second.gate.open())
        first.end()
        assert is_answered(listener)
    finally:
        first.end()
        second.end()


def test_a_shut_gate_does_not_hold_the_others_up(listener: socket.socket) -> None:
    """Others accept until none waits: on a socket that blocks, that stops their event loops, and nobody is answered."""
    listener.setblocking(False)
    first = Running(listener)
    try:
        first.call(first.gate.open())
        second = Running(listener)
        try:
            assert is_answered(listener)
            assert not os.get_blocking(listener.fileno())
        finally:
            second.end()
    finally:
        first.end()


def test_a_connection_accepted_while_the_gate_shuts_is_answered(listener: socket.socket) -> None:
    running = Running(listener)
    waker, woken = socket.socketpair()
    woken.setblocking(False)

    async def shut_when_woken() -> None:
        await asyncio.get_running_loop().sock_recv(woken, 1)
        await running.gate.shut()

    async def connect() -> socket.socket:
        shutting = asyncio.create_task(shut_when_woken())
        await asyncio.sleep(0.1)
        # Both events come in one iteration of the event loop.
        waker.send(b"x")
        client = socket.create_connection(listener.getsockname(), timeout=10)
        await shutting
        return client

    try:
        running.call(running.gate.open())
        with waker, woken, asyncio.run_coroutine_threadsafe(connect(), running.loop).result(10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        running.end()


def test_a_handshake_that_does_not_end_ends(listener: socket.socket, tmp_path: Path) -> None:
    certificate = trustme.CA().issue_cert("127.0.0.1")
    files = tmp_path / "certificate.pem", tmp_path / "key.pem"
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    running = Running(listener, ssl_certfile=str(files[0]), ssl_keyfile=str(files[1]))
    try:
        running.call(running.gate.open())
        with socket.create_connection(listener.getsockname(), timeout=10) as silent:
            assert silent.recv(100) == b""
    finally:
        running.end()
