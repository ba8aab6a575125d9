"""What of uvicorn BentoML's worker cannot be told to replace: it makes uvicorn's configuration itself."""

from __future__ import annotations

import asyncio
from functools import partial

import uvicorn.config

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from runners.core.request_limits import RequestLimits


def bound_connections(limits: RequestLimits) -> None:
    """Let the uvicorn server that this process starts next speak HTTP under these limits."""
    protocol = partial(BoundedHttpProtocol, ConnectionTable(limits))
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]


def bound_handshakes(seconds: float) -> None:
    """Let TLS handshakes that take longer end, on what the running loop listens on from now; by default they may take
    60 s."""
    loop = asyncio.get_running_loop()
    loop.create_server = partial(loop.create_server, ssl_handshake_timeout=seconds)  # type: ignore[method-assign]
