"""The connection between the parent process and a worker: a pair of sockets, of which the worker inherits one.

Messages are lines of JSON:

    worker to parent   {"ready": true, "live": true, "open": false, "loading": false}
                       how the worker is, at each change and once a second
    parent to worker   {"open": true, "stuck": false, "stand_in_is_open": false}
                       whether the worker is to accept connections, whether a worker is stuck, and whether the stand-in
                       answers, beside which no worker is ready

When one process dies, whatever has ended it, the other sees the connection close at once.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import MutableMapping
from functools import cache
from typing import Any

# The descriptor of the worker's socket.
CHANNEL_VARIABLE = "HUGGINGFACE_RUNTIME_CHANNEL"
Message = dict[str, Any]


def encode_message(message: Message) -> bytes:
    return json.dumps(message).encode() + b"\n"


def create_channel(environment: MutableMapping[str, str]) -> tuple[socket.socket, socket.socket]:
    """The parent's and the worker's socket for the next worker, which gets this environment."""
    parent, worker = socket.socketpair()
    worker.set_inheritable(True)
    environment[CHANNEL_VARIABLE] = str(worker.fileno())
    return parent, worker


@cache
def take_channel() -> socket.socket | None:
    """In a worker: the socket to the parent process; None where no parent supervises. Children do not get it."""
    number = os.environ.pop(CHANNEL_VARIABLE, None)
    if number is None:
        return None
    channel = socket.socket(fileno=int(number))
    channel.set_inheritable(False)
    return channel
