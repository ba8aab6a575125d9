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
import time
from functools import partial
from http import HTTPStatus

from runners.core.arguments import Arguments
from runners.core.certificates import create_ssl_context, keep_current
from runners.core.errors import one_line
from runners.core.probe_paths import LIVE_PATHS, READY_PATHS, ROOT_PATH, is_probe
from runners.core.shared_listener import duplicate_listener
from runners.core.url_paths import strip_prefix

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

    It accepts connections itself. asyncio's server would set its backlog on the socket of all processes, drop the
    connections that it has just accepted when it is closed, and not count those whose handshake is not over.

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
        # The descriptor from which connections are accepted; None while none is.
        self._accepting: socket.socket | None = None
        self._ssl: ssl.SSLContext | None = None
        self._has_failed = False
        self._serving: set[asyncio.Task[None]] = set()
        # When it was opened, and the requests, other than probes and scrapes, that it has refused and not reported.
        self._opened = 0.0
        self._refused = 0

    @property
    def is_open(self) -> bool:
        """Whether it accepts connections."""
        return self._accepting is not None

    def set_open(self, is_open: bool) -> None:
        """Accept connections from now on, or accept none; where it cannot, it tries again at the next call."""
        if not is_open:
            self._shut()
        elif self._accepting is None:
            try:
                self._ssl = self._ssl or self._create_ssl()
                self._accepting = duplicate_listener(self._listener)
            except OSError as error:
                self._report_failure(error)
                return
            self._opened = time.monotonic()
            asyncio.get_running_loop().add_reader(self._accepting, self._accept, self._accepting)

    def _shut(self) -> None:
        if self._accepting is not None:
            asyncio.get_running_loop().remove_reader(self._accepting)
            self._accepting.close()
            self._accepting = None
            self.report()

    def report(self) -> None:
        """Write one line about the requests that were refused since it was opened; no metric counts them."""
        refused, self._refused = self._refused, 0
        if refused:
            seconds = time.monotonic() - self._opened
            logger.warning("no worker took requests for %.1f s, and %d were answered with 503", seconds, refused)

    def _report_failure(self, error: OSError) -> None:
        """Write one line for all failures in a row."""
        if not self._has_failed:
            self._has_failed = True
            logger.error("clients get no answer while no worker serves: %s", one_line(error))

    def _create_ssl(self) -> ssl.SSLContext | None:
        certfile, keyfile = self._arguments.ssl_certfile, self._arguments.ssl_keyfile
        if certfile is None or keyfile is None or self._listener.family == socket.AF_UNIX:
            return None
        authorities = self._arguments.ssl_ca_certs
        create = partial(create_ssl_context, certfile, keyfile, authorities)
        context = create()
        # The files may change while the server runs, and be broken meanwhile.
        keep_current(context, create, [path for path in (certfile, keyfile, authorities) if path is not None])
        return context

    def _accept(self, listener: socket.socket) -> None:
        """Accept one connection, unless a worker was faster."""
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # No descriptor is free: the next call of `set_open` tries again.
            self._shut()
            self._report_failure(error)
            return
        self._has_failed = False
        if len(self._serving) >= _MOST_CONNECTIONS:
            connection.close()
            return
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            reader, writer = await self._open_streams(connection)
        except OSError:
            # A handshake that has failed, or takes too long.
            return
        try:
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
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _open_streams(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_LONGEST_HEAD, loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        # asyncio waits for a minute and for half a minute.
        times = {"ssl_handshake_timeout": _READ_SECONDS, "ssl_shutdown_timeout": _LINGER_SECONDS}
        transport, _ = await loop.connect_accepted_socket(
            lambda: protocol, connection, ssl=self._ssl, **(times if self._ssl else {})
        )
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    def _answer(self, head: bytes) -> bytes:
        """The whole answer to a request."""
        method, _, rest = head.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0].decode("latin-1")
        path = strip_prefix(path, self._arguments.root_path or "")
        status = HTTPStatus.SERVICE_UNAVAILABLE
        body: dict[str, str | bool] = {"error": _ENDING if self.is_ending else _STARTING}
        if not is_probe(method.decode("latin-1"), path):
            self._refused += 1
        elif path in READY_PATHS:
            body = {"ready": False}
        elif path in LIVE_PATHS:
            # The server itself lives, and replaces its workers.
            status, body = HTTPStatus.OK, {"live": True}
        elif path == ROOT_PATH:
            status, body = HTTPStatus.OK, {"status": "alive"}
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
