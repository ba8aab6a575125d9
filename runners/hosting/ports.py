"""Whether a port can be served on."""

from __future__ import annotations

import socket

from runners.core.errors import ArgumentsError


def check_port(port: int, argument: str, host: str = "0.0.0.0") -> None:
    """Before the workers start, which share their ports and so would share another server's.

    Raises:
        ArgumentsError: something listens there, or it is not allowed.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        # As the server itself does: a port whose last connections are closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ArgumentsError(
                f"port {port} cannot be used: {error.strerror}; set --{argument} to another"
            ) from error
