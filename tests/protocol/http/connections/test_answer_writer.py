"""An answer has the bytes that uvicorn writes, in one write if it is short."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import uvicorn
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from runners.core.arguments import Arguments

LENGTH = (b"content-length", b"2")


class Client(asyncio.Transport):
    """A connection that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        # Uvicorn writes the empty body of an answer to HEAD.
        if data:
            self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def get_write_buffer_size(self) -> int:
        return 0

    def resume_reading(self) -> None:
        pass


def head(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": [*headers]}


def body(data: bytes, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def ask(protocol: type[HttpToolsProtocol], request: bytes, messages: list[Message], **options: Any) -> Client:
    """A connection after the answer that an application makes of these messages."""

    async def application(_: Scope, __: Receive, send: Send) -> None:
        for message in messages:
            await send(dict(message))

    config = uvicorn.Config(application, lifespan="off", log_level="critical", **options)
    config.load()
    state = ServerState()
    state.default_headers = [(b"date", b"now")]
    arguments: list[Any] = [config, state, {}]
    if protocol is BoundedHttpProtocol:
        arguments = [ConnectionTable(Arguments(), ""), *arguments]
    connection = protocol(*arguments)
    client = Client()
    connection.connection_made(client)
    connection.data_received(request)
    await asyncio.gather(*state.tasks, return_exceptions=True)
    return client


GET = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
CLOSE = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
HEAD = b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n"
CONTINUED = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("request_bytes", "messages", "writes"),
    [
        (GET, [head(LENGTH), body(b"ok")], 1),
        (GET, [head(LENGTH, (b"content-type", b"text/plain"), status=404), body(b"no")], 1),
        (GET, [head((b"content-length", b"0")), {"type": "http.response.body"}], 1),
        (GET, [head(LENGTH, (b"x-tab", b"a\tb\xe9")), body(b"ok")], 1),
        (CLOSE, [head(LENGTH), body(b"ok")], 1),
        (b"GET / HTTP/1.0\r\n\r\n", [head(LENGTH), body(b"ok")], 1),
        (CONTINUED, [head(LENGTH), body(b"ok")], 1),
        (GET, [head((b"content-length", b"%d" % 2**16)), body(bytes(2**16))], 1),
        # What uvicorn writes.
        (GET, [head((b"content-length", b"%d" % (2**16 + 1))), body(bytes(2**16 + 1))], 2),
        (GET, [head(LENGTH), body(b"o", more=True), body(b"k")], 3),
        (GET, [head(LENGTH, (b"vary", b"a"), (b"vary", b"b")), body(b"ok")], 2),
        (GET, [head(LENGTH, (b"X-Upper", b"a")), body(b"ok")], 2),
        (GET, [head(LENGTH, (b"connection", b"close")), body(b"ok")], 2),
        (GET, [head(), body(b"ok")], 2),
        (GET, [{"type": "http.response.start", "status": 204}, body(b"")], 1),
        (HEAD, [head(LENGTH), body(b"ok")], 1),
        # What uvicorn refuses.
        (GET, [head(LENGTH, (b"x", b"a\r\nb: c")), body(b"ok")], 0),
        (GET, [head(LENGTH, (b"x:y", b"a")), body(b"ok")], 0),
        (GET, [head(LENGTH), body(b"too long")], 1),
        (GET, [head(LENGTH), body(b"-")], 2),
        (GET, [body(b"ok")], 2),
        (GET, [head(LENGTH), body(b"ok"), body(b"ok")], 1),
        (GET, [head(LENGTH), body(b"ok"), head(LENGTH), body(b"ok")], 1),
        (GET, [head(LENGTH), body(b"o", more=True), head(LENGTH), body(b"ok")], 2),
        (GET, [head(LENGTH), head(LENGTH), body(b"ok")], 1),
    ],
)  # fmt: skip
async def test_answers(request_bytes: bytes, messages: list[Message], writes: int) -> None:
    ours = await ask(BoundedHttpProtocol, request_bytes, messages)
    uvicorns = await ask(HttpToolsProtocol, request_bytes, messages)
    assert (b"".join(ours.writes), ours.closed) == (b"".join(uvicorns.writes), uvicorns.closed)
    assert len(ours.writes) == writes


async def test_a_head_without_its_body_becomes_an_error() -> None:
    """Uvicorn has written the head, and can only close the connection."""
    client = await ask(BoundedHttpProtocol, GET, [head(LENGTH)])
    assert client.writes[0].startswith(b"HTTP/1.1 500 ")
