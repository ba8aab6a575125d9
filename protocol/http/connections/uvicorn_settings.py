"""Parts of uvicorn that are replaced by patching: BentoML's worker makes uvicorn's configuration itself."""

from __future__ import annotations

from functools import partial

import uvicorn.config

from protocol.http.connections.bounded_protocol import BoundedHttpProtocol
from protocol.http.connections.connection_table import ConnectionTable
from runners.core.request_limits import RequestLimits


def bound_connections(limits: RequestLimits, root_path: str = "") -> ConnectionTable:
    """Make the uvicorn server that this process starts next apply these limits.

    Args:
        root_path: the prefix that paths may have; empty for none.

    Returns:
        The table in which its connections will be.
    """
    table = ConnectionTable(limits, root_path)
    uvicorn.config.HTTP_PROTOCOLS["auto"] = partial(BoundedHttpProtocol, table)  # type: ignore[assignment]
    return table
