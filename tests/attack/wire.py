"""Bytes over many sockets at once: what a case sends, and what came back on each connection.

One thread, and buffers that the connections share: a load that starves the two cores of a small machine
would measure itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass

# Read at a time.
_SLICE = 256 * 1024
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
# An answer is at most this long; only its end is kept.
_HEAD_BYTES = 256 * 1024

# How a connection ended that gave no (further) answer.
CLOSED = "closed"
RESET = "reset"
REFUSED = "refused"
PENDING = "pending"


@dataclass(frozen=True)
class Plan:
    """What one connection does.

    Attributes:
        parts: what it sends, in order.
        answers: after how many answers it is done.
        reads: whether it reads what comes back.
        pause: seconds between two parts.
        leaves: seconds after which it closes, whatever came; None for as long as there is patience.
    """

    parts: Sequence[bytes]
    answers: int = 1
    reads: bool = True
    pause: float = 0.0
    leaves: float | None = None


def http_request(
    method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, length: int | None = None
) -> list[bytes]:
    """A request's bytes: its head, and its body if there is one.

    Args:
        length: what content-length says, if not the body's.
    """
    fields = {"host": "localhost", **(headers or {})}
    if method == "POST" and "transfer-encoding" not in fields:
        fields["content-length"] = str(len(body) if length is None else length)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return [f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1"), *([body] if body else [])]


class _Answers:
    """Counts the answers in what a connection reads, and keeps no body."""

    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self.statuses: list[str] = []
        self._buffer = bytearray()
        self._left = 0
        self._chunked = False

    def feed(self, data: bytes) -> None:
        while data:
            if self._left:
                taken = min(self._left, len(data))
                self._left -= taken
                data = data[taken:]
                continue
            self._buffer += data
            data = b""
            if self._chunked:
                end = self._buffer.find(b"0\r\n\r\n")
                if end < 0:
                    del self._buffer[:-8]
                    return
                data = bytes(self._buffer[end + 5 :])
                self._chunked = False
                self._buffer.clear()
                continue
            end = self._buffer.find(_HEAD_END)
            if end < 0:
                if len(self._buffer) > _HEAD_BYTES:
                    raise ValueError("the server answers with something that is no HTTP")
                return
            head = bytes(self._buffer[:end])
            data = bytes(self._buffer[end + 4 :])
            self._buffer.clear()
            status = head.split(b" ", 2)[1].decode()
            if status.startswith("1"):
                continue
            self.statuses.append(status)
            if found := _LENGTH.search(head):
                self._left = int(found[1])
            self._chunked = _CHUNKED.search(head) is not None

    @property
    def complete(self) -> bool:
        """Whether all answers are there, to their ends."""
        return len(self.statuses) >= self._wanted and not self._left and not self._chunked


def exchange(port: int, plans: Sequence[Plan], patience: float) -> list[list[str]]:
    """Carry out the plans at once, and tell what each connection saw.

    It returns once all have ended, or after `patience` seconds. A connection that was answered is closed as soon as it
    has its answers, and all others when this returns.
    """
    return asyncio.run(_exchange(port, plans, patience))


async def _exchange(port: int, plans: Sequence[Plan], patience: float) -> list[list[str]]:
    async def bounded(plan: Plan) -> list[str]:
        seen = _Answers(plan.answers)
        ended = PENDING
        with contextlib.suppress(TimeoutError), socket.socket() as connection:
            async with asyncio.timeout(patience if plan.leaves is None else min(plan.leaves, patience)):
                ended = await _carry_out(connection, port, plan, seen)
        return [*seen.statuses, *([] if seen.complete else [ended])]

    return await asyncio.gather(*map(bounded, plans))


async def _carry_out(connection: socket.socket, port: int, plan: Plan, seen: _Answers) -> str:
    """How the connection ended."""
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not plan.reads:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        await loop.sock_connect(connection, ("127.0.0.1", port))
    except OSError:
        return REFUSED

    async def send() -> None:
        for position, part in enumerate(plan.parts):
            if position and plan.pause:
                await asyncio.sleep(plan.pause)
            # A server that has answered may read no further.
            with contextlib.suppress(ConnectionError):
                await loop.sock_sendall(connection, part)

    sending = asyncio.create_task(send())
    try:
        if not plan.reads:
            await sending
            await asyncio.Event().wait()
        while not seen.complete:
            data = await loop.sock_recv(connection, _SLICE)
            if not data:
                return CLOSED
            seen.feed(data)
    except ConnectionError:
        return RESET
    finally:
        sending.cancel()
    return ""
