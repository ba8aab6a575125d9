"""Checks that a port is free before the server starts."""

from __future__ import annotations

import errno
import socket

from runners.core.errors import ArgumentsError

# Of an address that no interface has, of a link-local one without an interface, and of IPv6 where there is none.
_NO_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT})


def check_port(port: int, argument: str, host: str = "0.0.0.0") -> None:
    """Bind the port for a moment: workers allow others to share their port, and would share that of another server.

    Raises:
        ArgumentsError: another process listens on the port, this process may not, or the machine has no such address.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            # The server sets it too: a port whose last connections are closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno in _NO_ADDRESS:
            raise ArgumentsError(
                f"{host} is not an address of this machine: set --host to one, or to 0.0.0.0 for all"
            ) from error
        raise ArgumentsError(f"port {port} cannot be used: {error.strerror}; set --{argument} to another") from error
