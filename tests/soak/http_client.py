"""A small HTTP/1.1 client that asks thousands of times a second: bytes out, a status and a body back."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from dataclasses import dataclass
from typing import cast

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class LostError(ConnectionError):
    """The connection ended before the answer did."""


@dataclass(frozen=True)
class Response:
    """An answer, whose body is that of all chunks."""

    status: int
    head: bytes
    body: bytes


class Connection(asyncio.Protocol):
    """A connection that is kept; it asks one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answered: asyncio.Future[Response] | None = None
        self._arrived = asyncio.Event()
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    @classmethod
    async def open(cls, port: int) -> Connection:
        """Connect to a port of this machine.

        Raises:
            OSError: nobody listens.
        """
        _, made = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return made

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._arrived.set()
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(LostError("the connection ended before the answer did"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._arrived.set()
        if self._answered is not None and not self._answered.done():
            try:
                response = read_response(self._buffer)
            except ValueError as error:
                self._answered.set_exception(error)
                return
            if response is not None:
                self._answered.set_result(response)
                if _CLOSE.search(response.head):
                    self.close()

    def write(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.write(data)

    async def ask(self, data: bytes) -> Response:
        """Send a request and wait for its answer.

        Raises:
            LostError: the connection ended before.
            ValueError: what came back is no HTTP.
        """
        self._answered = asyncio.get_running_loop().create_future()
        self.write(data)
        try:
            return await self._answered
        finally:
            self._answered = None

    async def wait_for_data(self) -> bool:
        """Wait until something has come back, which is true, or the connection has ended."""
        await self._arrived.wait()
        return bool(self._buffer)

    def close(self, reset: bool = False) -> None:
        """Close the connection; with `reset` by a RST, as a client does that has been killed."""
        self.is_open = False
        if self._transport is None or self._transport.is_closing():
            return
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._transport.abort()
        else:
            self._transport.close()


def read_response(buffer: bytearray) -> Response | None:
    """Take the answer off the buffer once it is complete; None before.

    Raises:
        ValueError: what came back is no HTTP.
    """
    while True:
        end = buffer.find(_HEAD_END)
        if end < 0:
            return None
        head = bytes(buffer[: end + 2])
        if not head.startswith(b"HTTP/1.1 "):
            raise ValueError(f"the answer is no HTTP: {head[:200]!r}")
        status, start = int(head[9:12]), end + 4
        if status >= 200:
            break
        # 100 Continue precedes the answer.
        del buffer[:start]
    if found := _LENGTH.search(head):
        stop = start + int(found[1])
        if len(buffer) < stop:
            return None
        body = bytes(buffer[start:stop])
    elif _CHUNKED.search(head):
        if (chunked := _read_chunks(buffer, start)) is None:
            return None
        body, stop = chunked
    else:
        body, stop = b"", start
    del buffer[:stop]
    return Response(status, head, body)


def _read_chunks(buffer: bytearray, start: int) -> tuple[bytes, int] | None:
    """The body from `start` and where it ends; None if a part is missing."""
    # Most often the last chunk has not come, so that the others need not be read.
    if not buffer.endswith(b"0\r\n\r\n"):
        return None
    parts: list[bytes] = []
    while True:
        line = buffer.find(b"\r\n", start)
        if line < 0:
            return None
        size = int(bytes(buffer[start:line]).partition(b";")[0], 16)
        first, last = line + 2, line + 2 + size
        if len(buffer) < last + 2:
            return None
        if size == 0:
            return b"".join(parts), last + 2
        parts.append(bytes(buffer[first:last]))
        start = last + 2
