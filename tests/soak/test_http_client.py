from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.soak.http_client import Connection, LostError, read_response

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [(PLAIN, 200, b"hello"), (CHUNKED, 404, b"hello"), (EMPTY, 204, b""), (CONTINUE + PLAIN, 200, b"hello")],
)
def test_a_response_is_read_once_it_is_complete(data: bytes, status: int, body: bytes) -> None:
    buffer = bytearray()
    for position in range(len(data)):
        assert read_response(buffer) is None, position
        buffer = bytearray(data[: position + 1])
    response = read_response(buffer)
    assert response is not None
    assert (response.status, response.body, bytes(buffer)) == (status, body, b"")


def test_what_is_no_http() -> None:
    with pytest.raises(ValueError, match="the answer is no HTTP"):
        read_response(bytearray(b"SSH-2.0\r\n\r\n"))


@asynccontextmanager
async def answering(*answers: bytes) -> AsyncIterator[int]:
    """The port of a server that gives these answers on each connection, and closes it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def test_a_connection_is_kept() -> None:
    async with answering(PLAIN, CHUNKED) as port:
        connection = await Connection.open(port)
        assert [(await connection.ask(b"GET / HTTP/1.1\r\n\r\n")).status for _ in range(2)] == [200, 404]
        connection.close()


async def test_an_answer_that_is_cut() -> None:
    async with answering(PLAIN[:-1]) as port:
        connection = await Connection.open(port)
        with pytest.raises(LostError):
            await connection.ask(b"GET / HTTP/1.1\r\n\r\n")
        assert not connection.is_open


async def test_a_connection_that_the_server_closes_is_not_used_again() -> None:
    async with answering(PLAIN.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as port:
        connection = await Connection.open(port)
        assert (await connection.ask(b"GET / HTTP/1.1\r\n\r\n")).body == b"hello"
        assert not connection.is_open
