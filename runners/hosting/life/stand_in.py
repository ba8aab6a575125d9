"""In the parent process: answers clients with 503 while no worker does, so that the port never hangs.

Workers and the parent share the listening socket. A connection that nobody has accepted yet waits in the kernel, and
the stand-in takes it once it is open.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
from http import HTTPStatus

from runners.core.arguments import Arguments
from runners.core.certificates import create_ssl_context
from runners.core.health_paths import LIVE_PATHS, READY_PATHS
from runners.core.shared_listener import duplicate_listener

logger = logging.getLogger(__name__)

_LONGEST_HEAD = 64 * 2**10
_READ_SECONDS = 5.0
# A client that still sends its body reads the answer before the connection is reset (RFC 9112, 9.6).
_LINGER_SECONDS = 1.0
_MOST_CONNECTIONS = 512
_RETRY_SECONDS = 2
_STARTING = "no worker process of the server is ready; try again later"
_ENDING = "the server is shutting down"


class StandIn:
    """The parent's small HTTP server, used by one event loop.

    Attributes:
        is_ending: whether the server ends.
    """

    def __init__(self, listener: socket.socket, arguments: Arguments) -> None:
        """
        Args:
            listener: the socket that the workers accept connections from too.
        """
        self.is_ending = False
        self._listener = listener
        self._arguments = arguments
        self._server: asyncio.Server | None = None
        self._connections = 0

    async def set_open(self, is_open: bool) -> None:
        """Accept connections from now on, or accept none."""
        if is_open and self._server is None:
            # Closing the server closes its socket.
            listener = duplicate_listener(self._listener)
            self._server = await asyncio.start_server(
                self._serve, sock=listener, limit=_LONGEST_HEAD, ssl=self._create_ssl()
            )
        elif not is_open and self._server is not None:
            self._server.close()
            self._server = None

    def _create_ssl(self) -> ssl.SSLContext | None:
        certfile, keyfile = self._arguments.ssl_certfile, self._arguments.ssl_keyfile
        if certfile is None or keyfile is None:
            return None
        # The files may have changed since the server started.
        return create_ssl_context(certfile, keyfile, self._arguments.ssl_ca_certs)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections > _MOST_CONNECTIONS:
                writer.transport.abort()
                return
            async with asyncio.timeout(_READ_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._answer(head))
            await writer.drain()
            if writer.can_write_eof():
                writer.write_eof()
            async with asyncio.timeout(_LINGER_SECONDS):
                while await reader.read(_LONGEST_HEAD):
                    pass
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
            pass
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _answer(self, head: bytes) -> bytes:
        """The whole answer to a request."""
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        status = HTTPStatus.SERVICE_UNAVAILABLE
        body: dict[str, str | bool] = {"error": _ENDING if self.is_ending else _STARTING}
        if path in LIVE_PATHS:
            # The server itself lives, and replaces its workers.
            status, body = HTTPStatus.OK, {"live": True}
        elif path in READY_PATHS:
            body = {"ready": False}
        content = json.dumps(body, separators=(",", ":")).encode()
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            "content-type: application/json",
            f"content-length: {len(content)}",
            "connection: close",
        ]
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append(f"retry-after: {_RETRY_SECONDS}")
        return "\r\n".join([*lines, "", ""]).encode() + (b"" if method == b"HEAD" else content)
