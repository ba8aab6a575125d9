"""Opens and closes the HTTP port of a worker, whose socket all workers and their parent process share.

The kernel keeps connections that nobody has accepted yet for whoever accepts next: none is lost when a worker stops to
accept, or dies.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from runners.core.shared_listener import duplicate_listener

_CreateServer = Callable[..., Awaitable[asyncio.Server]]


class Gate:
    """What uvicorn gets from the event loop instead of a server; it accepts connections while it is open.

    Attributes:
        is_open: whether it accepts.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._socket: socket.socket | None = None
        self._create: _CreateServer | None = None
        self._server: asyncio.Server | None = None
        self._attached = asyncio.Event()
        self._lock = asyncio.Lock()

    def attach_next_server(self, handshake_seconds: float) -> None:
        """Take the place of the next server that is made of a socket in the running loop, which is uvicorn's.

        Args:
            handshake_seconds: the time-out of TLS handshakes; the default is 60 s.
        """
        loop = asyncio.get_running_loop()
        create = loop.create_server

        async def attach(factory: Any, **kwargs: Any) -> Gate:
            loop.create_server = create  # type: ignore[method-assign]
            # Uvicorn closes its own when the server ends.
            self._socket = duplicate_listener(kwargs.pop("sock"))
            if kwargs.get("ssl") is not None:
                kwargs["ssl_handshake_timeout"] = handshake_seconds
            self._create = partial(create, factory, **kwargs)
            self._attached.set()
            return self

        loop.create_server = attach  # type: ignore[assignment, method-assign]

    async def open(self) -> None:
        """Accept connections, once uvicorn is there to serve them."""
        await self._attached.wait()
        async with self._lock:
            if not self.is_open and self._socket is not None and self._create is not None:
                # Closing a server closes its socket.
                self._server = await self._create(sock=duplicate_listener(self._socket))
                self.is_open = True

    async def shut(self) -> None:
        """Accept no connections; those that are open stay, and the gate can be opened again."""
        async with self._lock:
            if self._server is not None:
                for listener in self._server.sockets:
                    asyncio.get_running_loop().remove_reader(listener)
                # asyncio drops connections that it has accepted in the iteration in which the server is closed.
                await asyncio.sleep(0)
            self._shut()

    def close(self) -> None:
        """Accept no connections any more; uvicorn calls it when it ends."""
        self._shut()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def wait_closed(self) -> None:
        """Return at once: uvicorn itself waits for its connections."""

    def _shut(self) -> None:
        self.is_open = False
        if self._server is not None:
            self._server.close()
            self._server = None
