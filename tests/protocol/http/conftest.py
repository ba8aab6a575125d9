"""A real uvicorn in this process, under limits that a test can reach, with an application that tells what it got."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
import uvicorn
import uvicorn.config
from starlette.types import Receive, Scope, Send

from protocol.http.connections.connection_table import ConnectionTable
from protocol.http.connections.uvicorn_settings import bound_connections
from runners.core.arguments import Arguments
from tests.waiting import wait_until

StartUvicorn: TypeAlias = Callable[..., int]


async def report(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with path, number of headers and size of the body; `/large` with 64 MiB, `/slow` after a while, `/early`
    before the body."""
    if scope["type"] != "http":
        return
    size = 0
    while scope["path"] != "/early":
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size += len(message.get("body", b""))
        if not message.get("more_body", False):
            break
    if scope["path"] == "/slow":
        await asyncio.sleep(0.5)
    answer = f"{scope['path']} {len(scope['headers'])} {size}".encode()
    if scope["path"] == "/large":
        answer = bytes(64 * 2**20)
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(answer))]}
    )  # fmt: skip
    await send({"type": "http.response.body", "body": answer})


@pytest.fixture
def start_uvicorn(monkeypatch: pytest.MonkeyPatch) -> Iterator[StartUvicorn]:
    """Start a server: `start_uvicorn(header_timeout=0.2)`; the result is its port."""
    with contextlib.ExitStack() as stack:

        def start(application: Any = report, config: dict[str, Any] | None = None, **limits: Any) -> int:
            monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")
            arguments = Arguments(**limits)
            bound_connections(arguments, arguments.root_path or "")
            options: dict[str, Any] = {"port": 0, "log_level": "critical", "lifespan": "off", **(config or {})}
            server = uvicorn.Server(uvicorn.Config(application, **options))
            thread = threading.Thread(target=server.run)
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)
            wait_until(lambda: server.started)
            port: int = server.servers[0].sockets[0].getsockname()[1]
            return port

        yield start


def find_table() -> ConnectionTable:
    """That of the server which was started last."""
    protocol: Any = uvicorn.config.HTTP_PROTOCOLS["auto"]
    table: ConnectionTable = protocol.args[0]
    return table


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def read_all(client: socket.socket) -> bytes:
    """What comes until the server closes the connection."""
    received = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while chunk := client.recv(65536):
            received += chunk
    return bytes(received)


def send_all(client: socket.socket, data: bytes, piece: int = 2**16) -> None:
    """Send until it is sent or the server closes the connection."""
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(data), piece):
            client.sendall(data[start : start + piece])


def statuses(answer: bytes) -> list[int]:
    """The status of each response, none of which has a body that looks like a status line."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]
