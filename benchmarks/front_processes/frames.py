"""Messages between a front process and the model process: token ids to it, classes from it.

A request is a length, a number of the request, the number of its texts, the length of each, and their token ids; an
answer a length, the number of the request, and the class of each text. All are little-endian 32-bit integers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

_SIZE = 4
Message = NDArray[np.int32]


class Connection(asyncio.Protocol):
    """One end of a Unix socket; all messages of an iteration of the event loop are sent in one write."""

    def __init__(self, receive: Callable[[Connection, Message], None]) -> None:
        """
        Args:
            receive: called with each message, without its length.
        """
        self._receive = receive
        self._received = bytearray()
        self._waiting: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's has no base class of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        start = 0
        while len(self._received) - start >= _SIZE:
            end = start + _SIZE + int.from_bytes(self._received[start : start + _SIZE], "little")
            if end > len(self._received):
                break
            self._receive(self, np.frombuffer(bytes(self._received[start + _SIZE : end]), np.int32))
            start = end
        del self._received[:start]

    def send(self, message: Message) -> None:
        """Send a message, without its length, in this iteration of the event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting += [message.nbytes.to_bytes(_SIZE, "little"), message.tobytes()]

    def _flush(self) -> None:
        assert self._transport is not None
        self._transport.write(b"".join(self._waiting))
        self._waiting.clear()


def make_request(number: int, texts: Sequence[NDArray[np.int64]]) -> Message:
    head = np.array([number, len(texts), *map(len, texts)], np.int32)
    return np.concatenate([head, *texts]).astype(np.int32)


def read_request(message: Message) -> tuple[int, list[NDArray[np.int64]]]:
    """The number of a request, and the token ids of its texts."""
    number, texts = message[:2].tolist()
    ends = np.cumsum(message[2 : 2 + texts])
    return number, np.split(message[2 + texts :].astype(np.int64), ends[:-1])
