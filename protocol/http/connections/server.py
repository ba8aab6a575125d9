"""Parts of uvicorn that are replaced by patching: BentoML's worker makes uvicorn's configuration itself."""

from __future__ import annotations

import asyncio
from functools import partial

import uvicorn.config

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from runners.core.request_limits import RequestLimits


def bound_connections(limits: RequestLimits) -> None:
    """Make the uvicorn server that this process starts next apply these limits."""
    protocol = partial(BoundedHttpProtocol, ConnectionTable(limits))
    uvicorn.config.HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]


def bound_handshakes(seconds: float) -> None:
    """Set the time-out of TLS handshakes of sockets that the running loop opens from now on; the default is 60 s."""
    loop = asyncio.get_running_loop()
    loop.create_server = partial(loop.create_server, ssl_handshake_timeout=seconds)  # type: ignore[method-assign]
