"""Checks that a port is free before the server starts."""

from __future__ import annotations

import socket

from runners.core.errors import ArgumentsError


def check_port(port: int, argument: str, host: str = "0.0.0.0") -> None:
    """Bind the port for a moment: workers allow others to share their port, and would share that of another server.

    Raises:
        ArgumentsError: another process listens on the port, or this process may not.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # The server sets it too: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ArgumentsError(
                f"port {port} cannot be used: {error.strerror}; set --{argument} to another"
            ) from error
