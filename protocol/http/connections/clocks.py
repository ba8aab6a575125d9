"""The clocks of a connection's time-outs: how long headers, bodies and the reading of answers take."""

from __future__ import annotations

import asyncio

from protocol.http.connections.answer_progress import count_acknowledged

# The least bytes of a body that must arrive in body_timeout, and of an answer that must be read in answer_timeout.
_LEAST_PROGRESS = 64 * 2**10


class AnswerClock:
    """How far the client has read the answers.

    Attributes:
        written: bytes of answers that were given to the transport.
        unsent: bytes of them that were not sent when the clock was last updated.
        since: when the client last made the required progress.
    """

    def __init__(self) -> None:
        self.written = 0
        self.unsent = 0
        self.since = 0.0
        self._sent_then = 0

    def update(self, transport: asyncio.Transport, is_tls: bool, now: float) -> None:
        unsent = self.unsent = transport.get_write_buffer_size()
        # Over TLS the transport counts only bytes that are not in the socket's buffer yet; that number stays the same
        # until all of them have been sent.
        sent = count_acknowledged(transport) if unsent and is_tls else self.written - unsent
        if not unsent:
            self._sent_then, self.since = 0 if is_tls else sent, now
        elif sent - self._sent_then >= _LEAST_PROGRESS:
            self._sent_then, self.since = sent, now


class RequestClock:
    """How much of the current request has arrived.

    Attributes:
        idle_since: when the connection became idle.
        headers_since: when the arriving headers began; None if no headers are arriving.
        body_since: when the arriving body last made progress.
        body_bytes: how much of the body has arrived.
    """

    def __init__(self) -> None:
        self.idle_since = 0.0
        self.headers_since: float | None = None
        self.body_since = 0.0
        self.body_bytes = 0
        self._body_bytes_then = 0

    def begin_headers(self, now: float) -> None:
        if self.headers_since is None:
            self.headers_since = now

    def begin_body(self, now: float) -> None:
        self.headers_since = None
        self.body_bytes = self._body_bytes_then = 0
        self.body_since = now

    def become_idle(self, now: float) -> None:
        self.idle_since = now
        if self.headers_since is not None:
            self.headers_since = now

    def wait_for_turn(self, now: float) -> None:
        """Restart the clocks: the client is not to blame for what is not parsed yet."""
        self.idle_since = self.body_since = now

    def has_body_progressed(self, now: float) -> bool:
        """Whether the body has made the required progress since the last restart of the clock; if so, restart it."""
        if self.body_bytes - self._body_bytes_then < _LEAST_PROGRESS:
            return False
        self._body_bytes_then, self.body_since = self.body_bytes, now
        return True
