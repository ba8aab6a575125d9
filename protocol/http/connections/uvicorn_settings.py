"""Parts of uvicorn that are replaced by patching: BentoML's worker makes uvicorn's configuration itself."""

from __future__ import annotations

from functools import partial

import uvicorn.config

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from runners.core.request_limits import RequestLimits


def bound_connections(limits: RequestLimits) -> ConnectionTable:
    """Make the uvicorn server that this process starts next apply these limits.

    Returns:
        The table in which its connections will be.
    """
    table = ConnectionTable(limits)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = partial(BoundedHttpProtocol, table)  # type: ignore[assignment]
    return table
