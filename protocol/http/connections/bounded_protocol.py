"""Uvicorn's HTTP/1.1 with limits on all that a client can make the server hold or wait for.

Uvicorn's parser, llhttp, takes headers of any size and number. Uvicorn has no time-out for headers, for bodies, or for
clients that read their answers. https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from http import HTTPStatus
from typing import Any

from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.server import ServerState

from protocol.http.connections.answer_progress import has_unacknowledged
from protocol.http.connections.answer_writer import AnswerWriter
from protocol.http.connections.clocks import AnswerClock
from protocol.http.connections.connection_table import ConnectionTable
from protocol.http.connections.flow import HoldableFlow
from protocol.http.connections.refusals import Refusal, refuse_with
from protocol.http.connections.turn_parsing import TurnParsingProtocol
from protocol.http.disconnects import CLIENT, Client
from protocol.http.errors import name_status_refusal
from protocol.http.recording import SERVER
from runners.core.request_record import record_refusal
from runners.core.sent_answers import collect_releases, release_all

# How long a client that still sends may read the refusal; an immediate close could lose it (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0

_SLOW_READER = "a client that reads too little of its answer (answer_timeout)"
_SLOW_HEADERS = refuse_with(HTTPStatus.REQUEST_TIMEOUT, "the request's headers did not arrive in time (header_timeout)")
_SLOW_BODY = refuse_with(HTTPStatus.REQUEST_TIMEOUT, "the request's body did not arrive in time (body_timeout)")


class BoundedHttpProtocol(TurnParsingProtocol):
    """One connection.

    Attributes:
        answer_clock: how far the client has read its answers.
    """

    def __init__(
        self,
        table: ConnectionTable,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(table, config, server_state, app_state, _loop)
        # No protocol uses WebSockets: a request to upgrade is answered as a plain request (RFC 9110, 7.8).
        self.ws_protocol_class = None
        # Uvicorn would prepare a line for each answer, logged or not.
        self.access_log = self.access_log and self.access_logger.isEnabledFor(logging.INFO)
        table.keep_certificate_current(config)
        self._keep_alive_seconds = table.keep_alive_seconds(config)
        self.answer_clock = AnswerClock()
        self._answering: RequestResponseCycle | None = None
        # The client of the request that is being answered.
        self._client = Client()

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = HoldableFlow(transport)
        self._clock.idle_since = self.answer_clock.since = self.loop.time()
        self._only_health = not self._table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        self._unparsed = b""
        # Uvicorn tells only the last request of the disconnection, which may be one that waits.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        self._client.leave()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the transport is closed later: closing a thousand at once takes long."""
        # Over TLS it is closed in any case.
        if self.scheme == "https" or self._table.turns.take():
            return False
        self._table.turns.wait(self.transport.close)
        return True

    # What the request's cycle calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self._client = Client()
        if self._table.draining:
            cycle.keep_alive = False
        cycle.scope[CLIENT] = self._client  # type: ignore[literal-required]
        super()._start_asgi_task(cycle, partial(self._answer, app, cycle))

    async def _answer(
        self,
        app: ASGI3Application,
        cycle: RequestResponseCycle,
        scope: Scope,
        receive: ASGIReceiveCallable,
        _: ASGISendCallable,
    ) -> None:
        """Let the application answer, and give back what the answer holds once its client has read it."""
        releases = collect_releases()

        try:
            await app(scope, receive, AnswerWriter(cycle, self.answer_clock).send)
            if releases and self.flow.write_paused:
                await self.flow.drain()
        finally:
            release_all(releases)

    def on_response_complete(self) -> None:
        """As uvicorn's, without its timer: the table checks the time-out of idle connections."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            if self._table.turns.take():
                self._start_next()
            else:
                self._table.turns.wait(self._start_next)
        elif self._in_body:
            # The rest of the body is discarded as it comes.
            self._clock.body_since = self.loop.time()
        else:
            self._become_idle()

    def _start_next(self) -> None:
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _become_idle(self) -> None:
        self._clock.become_idle(self.loop.time())
        self._table.idle[self] = None

    def _become_busy(self) -> None:
        self._table.idle.pop(self, None)

    # What the table calls.

    def check(self, now: float) -> None:
        """End the connection if one of its time-outs is over."""
        self.answer_clock.update(self.transport, self.scheme == "https", now)
        if self._ended_at in (None, math.inf) and self.transport.is_closing() and not self.is_unread():
            # Over TLS the connection waits for the client to close its side.
            self._end(now)
        if now - self.answer_clock.since > self._table.limits.answer_timeout:
            self._table.log.add(_SLOW_READER)
            self.transport.abort()
        elif self._ended_at is not None:
            if now - self._ended_at > _LINGER_SECONDS:
                self.transport.abort()
        elif self._unparsed:
            self._clock.wait_for_turn(now)
        elif self in self._table.idle:
            self._check_idle(now)
        elif self._in_body:
            self._check_body(now)

    def is_unread(self) -> bool:
        """Whether the client has not taken all that was written for it."""
        if self.transport.get_write_buffer_size():
            return True
        return self.scheme == "https" and has_unacknowledged(self.transport)

    def _check_idle(self, now: float) -> None:
        header_timeout = self._table.limits.header_timeout
        if self._clock.headers_since is not None:
            if now - self._clock.headers_since > header_timeout:
                self.refuse(_SLOW_HEADERS)
        elif now - self._clock.idle_since > (header_timeout if self.cycle is None else self._keep_alive_seconds):
            self._end(math.inf)
            self.transport.close()

    def _check_body(self, now: float) -> None:
        """The clock runs while the application waits for more of the body, and once it has answered."""
        is_answered = self.cycle.response_complete
        if self.flow.read_paused and not is_answered:
            self._clock.body_since = now
        elif not is_answered and self._clock.has_body_progressed(now):
            return
        elif now - self._clock.body_since > self._table.limits.body_timeout:
            self.refuse(_SLOW_BODY)

    def leave(self, reason: str) -> None:
        """Close the connection, on which no request is under way, at once."""
        self._table.log.add(reason)
        self._end(math.inf)
        if self.scheme == "https" or self.is_unread():
            # A close would wait for the client.
            self.transport.abort()
        else:
            self.transport.close()

    def refuse(self, refusal: Refusal) -> None:
        """Answer the request that is being parsed, if it can be answered, and close the connection."""
        self._table.log.add(refusal.reason)
        cycle = self.cycle
        is_answering = cycle is not None and not cycle.response_complete
        if not self._in_body and is_answering:
            # The requests before it are answered first; the last answer says that the connection is closed.
            cycle.keep_alive = False
            self._end(math.inf)
            self.flow.hold()
        elif self._in_body and (cycle.response_started or self.pipeline):
            # Its answer has begun, or must wait for the answers to earlier requests.
            self._end(math.inf)
            self.transport.close()
        else:
            if is_answering:
                cycle.disconnected = True
                cycle.message_event.set()
                self._client.refused = refusal.status
                self._client.leave()
            elif refusal.status:
                record_refusal(SERVER, str(refusal.status), name_status_refusal(refusal.status), "")
            self._end(self.loop.time())
            self.flow.resume_reading()
            self.flow.release()
            self.transport.write(refusal.answer)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                # TLS has its own closing handshake, which waits for the client.
                self.transport.close()

    def _end(self, since: float) -> None:
        self._ended_at = since
        self._unparsed = b""
        self._table.idle.pop(self, None)
