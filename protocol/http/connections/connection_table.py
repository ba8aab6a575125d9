"""All HTTP connections of a worker: their number, the idle ones, and their time-outs."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from uvicorn.config import Config

from protocol.http.connections.descriptors import reserve_descriptors
from protocol.http.connections.refusals import RefusalLog
from protocol.http.connections.turns import Turns
from protocol.http.open_paths import HEALTH_PATHS
from runners.core.certificates import create_ssl_context, keep_current
from runners.core.request_limits import RequestLimits

if TYPE_CHECKING:
    from protocol.http.connections.bounded_protocol import BoundedHttpProtocol

# Further connections beyond the limit, on which only health probes are answered.
_RESERVE = 64
# The value in uvicorn and BentoML if the operator sets no --timeout-keep-alive.
_DEFAULT_KEEP_ALIVE = 5
_LONGEST_INTERVAL = 1.0
# The bytes of all unsent answers, in multiples of max_buffered_bytes: the largest answers are of numbers, which have a
# limit until they are sent, and eight of those answers must fit.
_UNSENT_MULTIPLE = 4
# A connection with fewer unsent bytes is kept.
_LEAST_UNSENT = 64 * 2**10
_UNREAD = "the client that reads its answer slowest, because too many bytes are unread (max_buffered_bytes)"
# Connections that are checked in an iteration of the event loop; some ms if the time-outs of all are over.
_CHECKED_AT_ONCE = 32


class ConnectionTable:
    """The connections of one event loop, checked for time-outs together, about once a second.

    Attributes:
        root_path: the prefix that paths may have; empty for none.
        health_requests: the beginnings of requests that do not wait for their turn.
        idle: the connections without a running request, the longest idle one first.
        turns: the turns of the connections that sent something or have ended.
        draining: whether each answer is the last one of its connection, because the server ends.
    """

    def __init__(self, limits: RequestLimits, root_path: str) -> None:
        self.limits = limits
        self.root_path = root_path
        self.health_requests = tuple(
            f"GET {prefix}{path}{after}".encode()
            for prefix in {"", root_path}
            for path in HEALTH_PATHS
            for after in (" ", "?", "/ ", "/?")
        )
        self.log = RefusalLog()
        self.idle: dict[BoundedHttpProtocol, None] = {}
        self.turns = Turns()
        self.draining = False
        self._open: set[BoundedHttpProtocol] = set()
        self._most = reserve_descriptors(limits.max_connections)
        timeouts = (limits.header_timeout, limits.body_timeout, limits.answer_timeout, limits.timeout_keep_alive)
        self._interval = min(_LONGEST_INTERVAL, *(timeout / 4 for timeout in timeouts))
        self._certificate_is_kept = False
        self._check_handle: asyncio.TimerHandle | None = None

    def keep_alive_seconds(self, config: Config) -> float:
        """How long an idle connection is kept: BentoML's value if the operator set it, else this server's."""
        configured = config.timeout_keep_alive
        return configured if configured != _DEFAULT_KEEP_ALIVE else self.limits.timeout_keep_alive

    def keep_certificate_current(self, config: Config) -> None:
        """Start to watch the certificate; called for the first connection, before its handshake."""
        if self._certificate_is_kept:
            return
        self._certificate_is_kept = True
        context, certfile, keyfile = config.ssl, config.ssl_certfile, config.ssl_keyfile
        if context is None or certfile is None or keyfile is None or config.ssl_keyfile_password:
            return
        authorities = None if config.ssl_ca_certs is None else str(config.ssl_ca_certs)
        create = partial(
            create_ssl_context, str(certfile), str(keyfile), authorities, config.ssl_ciphers, config.ssl_cert_reqs
        )
        keep_current(context, create, [str(path) for path in (certfile, keyfile, authorities) if path is not None])

    def add(self, connection: BoundedHttpProtocol) -> bool:
        """Add a new connection; if the table is full, close the one that has been idle for longest.

        Returns:
            Whether the connection may send requests other than for health.
        """
        allowed = True
        if len(self._open) >= self._most:
            if self.idle:
                longest = next((each for each in self.idle if not each.is_unread()), None)
                longest = longest or next(iter(self.idle))
                self.remove(longest)
                longest.leave("an idle connection, in favour of a new one (max_connections)")
            elif len(self._open) < self._most + _RESERVE:
                allowed = False
            else:
                self.log.add("a new connection (max_connections)")
                connection.transport.abort()
                return False
        self.turns.note_connection()
        self._open.add(connection)
        self.idle[connection] = None
        if self._check_handle is None:
            self._check_handle = connection.loop.call_later(self._interval, self._check, connection.loop)
        return allowed

    def abort_all(self) -> None:
        """End all connections at once, whatever is under way."""
        for connection in [*self._open]:
            connection.transport.abort()

    def remove(self, connection: BoundedHttpProtocol) -> None:
        self._open.discard(connection)
        self.idle.pop(connection, None)

    def _check(self, loop: asyncio.AbstractEventLoop) -> None:
        self._check_some(loop, list(self._open))

    def _check_some(self, loop: asyncio.AbstractEventLoop, connections: list[BoundedHttpProtocol]) -> None:
        now = loop.time()
        for connection in connections[-_CHECKED_AT_ONCE:]:
            connection.check(now)
        del connections[-_CHECKED_AT_ONCE:]
        if connections:
            loop.call_soon(self._check_some, loop, connections)
            return
        self._bound_unsent()
        self.log.write()
        # The check goes on while there are connections, so that the last refusals are logged too.
        self._check_handle = loop.call_later(self._interval, self._check, loop) if self._open else None

    def _bound_unsent(self) -> None:
        """Abort the connections without progress for the longest time, until few enough bytes are unsent."""
        holding = [connection for connection in self._open if connection.answer_clock.unsent > _LEAST_UNSENT]
        excess = (
            sum(connection.answer_clock.unsent for connection in holding)
            - _UNSENT_MULTIPLE * self.limits.max_buffered_bytes
        )
        if excess <= 0:
            return
        for connection in sorted(holding, key=lambda each: (each.answer_clock.since, -each.answer_clock.unsent)):
            self.log.add(_UNREAD)
            connection.transport.abort()
            excess -= connection.answer_clock.unsent
            if excess <= 0:
                return
