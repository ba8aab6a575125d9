"""The listening socket of HTTP, which all workers and their parent process share, with its mode."""

from __future__ import annotations

import os
import socket


def duplicate_listener(listener: socket.socket) -> socket.socket:
    """Another descriptor of the socket, which still does not block in any process.

    `socket.dup` would set the mode of the Python object, which blocks unless told otherwise: event loops that accept
    until no connection waits would stand still.
    """
    duplicate = socket.socket(fileno=os.dup(listener.fileno()))
    duplicate.setblocking(False)
    return duplicate
