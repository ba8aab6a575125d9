"""How much of an answer the client has received, from the kernel: a TLS transport does not tell."""

from __future__ import annotations

import asyncio
import socket
import sys

# The place of tcpi_bytes_acked in Linux's struct tcp_info: https://man7.org/linux/man-pages/man7/tcp.7.html
_ACKNOWLEDGED = slice(120, 128)
# The places of tcpi_unacked, the packets on their way, and tcpi_notsent_bytes.
_WAITING = (slice(24, 28), slice(144, 148))


def count_acknowledged(transport: asyncio.BaseTransport) -> int:
    """The bytes that the client's system has acknowledged; 0 on other systems than Linux."""
    return int.from_bytes(_read_info(transport)[_ACKNOWLEDGED], sys.byteorder)


def has_unacknowledged(transport: asyncio.BaseTransport) -> bool:
    """Whether the client's system has yet to acknowledge bytes; False on other systems than Linux."""
    info = _read_info(transport)
    return any(int.from_bytes(info[part], sys.byteorder) for part in _WAITING)


def _read_info(transport: asyncio.BaseTransport) -> bytes:
    connection = transport.get_extra_info("socket")
    option = getattr(socket, "TCP_INFO", None)
    # A lost connection has no socket.
    if option is None or connection is None or connection.fileno() < 0:
        return b""
    info: bytes = connection.getsockopt(socket.IPPROTO_TCP, option, _WAITING[-1].stop)
    return info
