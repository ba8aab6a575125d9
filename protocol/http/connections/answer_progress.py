"""How far a connection's answer has come, where its transport does not tell."""

from __future__ import annotations

import asyncio
import socket
import sys

# Where tcpi_bytes_acked is in Linux's struct tcp_info: https://man7.org/linux/man-pages/man7/tcp.7.html
_ACKNOWLEDGED = slice(120, 128)
# tcpi_unacked, packets that are on their way, and tcpi_notsent_bytes.
_WAITING = (slice(24, 28), slice(144, 148))


def count_acknowledged(transport: asyncio.BaseTransport) -> int:
    """Bytes that the client's system has taken, as Linux tells; 0 elsewhere."""
    return int.from_bytes(_read_info(transport)[_ACKNOWLEDGED], sys.byteorder)


def has_unacknowledged(transport: asyncio.BaseTransport) -> bool:
    """Whether the client's system has not taken all that its connection was given, as Linux tells; False elsewhere."""
    info = _read_info(transport)
    return any(int.from_bytes(info[part], sys.byteorder) for part in _WAITING)


def _read_info(transport: asyncio.BaseTransport) -> bytes:
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    # A connection that has been lost has none.
    if option is None or connection is None or connection.fileno() < 0:
        return b""
    info: bytes = connection.getsockopt(socket.IPPROTO_TCP, option, _WAITING[-1].stop)
    return info
