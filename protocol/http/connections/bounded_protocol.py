"""HTTP/1.1 as uvicorn speaks it, with a bound on everything that a client may make it hold or wait for.

Uvicorn's parser, llhttp, takes headers of any size and number, and uvicorn waits for headers, bodies and readers of
answers for ever. https://www.rfc-editor.org/rfc/rfc9112
"""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from http import HTTPStatus
from typing import Any, NoReturn

import httptools
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, ASGISendEvent, Scope
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from protocol.http.connections.answer_progress import count_acknowledged, has_unacknowledged
from protocol.http.connections.connection_table import ConnectionTable
from protocol.http.connections.refusals import Refusal, refuse_with
from runners.core.sent_answers import collect_releases

# Answered also on connections beyond the limit, so that a full server is not taken for a dead one.
HEALTH_PATHS = frozenset({"/v2/health/live", "/v2/health/ready", "/livez", "/readyz", "/healthz"})
# How such a request begins, which does not wait for its turn.
_HEALTH_REQUESTS = tuple(f"GET {path}{after}".encode() for path in HEALTH_PATHS for after in " ?")
# Bytes parsed at once; of the smallest headers or chunks of a body these are some thousands, which take 1 to 2 ms.
_PIECE = 16 * 2**10
# Requests that may wait on a connection for the answer to an earlier one.
_MOST_PIPELINED = 64
# A body must progress by as much in body_timeout, and the reading of an answer in answer_timeout, or end.
_LEAST_PROGRESS = 64 * 2**10
# So long a client that still sends may take to find the refusal; to close at once could lose it (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0

_INVALID = refuse_with(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
_TOO_MANY_PIPELINED = Refusal("a connection with too many pipelined requests")
_SLOW_READER = "a client that reads too little of its answer (answer_timeout)"
_SLOW_HEADERS = refuse_with(HTTPStatus.REQUEST_TIMEOUT, "the request's headers did not arrive in time (header_timeout)")
_SLOW_BODY = refuse_with(HTTPStatus.REQUEST_TIMEOUT, "the request's body did not arrive in time (body_timeout)")
_NO_CONNECTION = refuse_with(
    HTTPStatus.SERVICE_UNAVAILABLE, "the server has as many connections as it takes (max_connections)", retry_after=1
)


class _RefusedError(Exception):
    """Raised in a callback of the parser, which ends the parsing."""


class _Flow(FlowControl):
    """Reading is paused also while bytes that came are not parsed yet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._held = False

    def hold(self) -> None:
        if not self._held:
            self._held = True
            if not self.read_paused:
                self._transport.pause_reading()

    def release(self) -> None:
        if self._held:
            self._held = False
            if not self.read_paused:
                self._transport.resume_reading()

    def pause_reading(self) -> None:
        if self._held:
            self.read_paused = True
        else:
            super().pause_reading()

    def resume_reading(self) -> None:
        if self._held:
            self.read_paused = False
        else:
            super().resume_reading()


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection.

    Attributes:
        unsent: bytes of answers that were not sent when the table checked last.
        sent_since: since when the client has not read as much of them as it must.
    """

    flow: _Flow

    def __init__(
        self,
        table: ConnectionTable,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # None of the protocols has WebSockets; a request to upgrade is answered as if it were none (RFC 9110, 7.8).
        self.ws_protocol_class = None
        # Uvicorn prepares a line for each answer also where it is not logged.
        self.access_log = self.access_log and self.access_logger.isEnabledFor(logging.INFO)
        self._table = table
        table.keep_certificate_current(config)
        limits = table.limits
        self._most_url = limits.max_url_bytes
        self._most_headers = limits.max_headers
        self._most_header_bytes = limits.max_header_bytes
        self._keep_alive_seconds = table.keep_alive_seconds(config)
        # On a connection beyond the limit.
        self._only_health = False
        # What came and is to be parsed in turns.
        self._unparsed: bytes | memoryview = b""
        self._refusal: Refusal | None = None
        # Since when nothing that comes is parsed any more; infinite while earlier requests are being answered.
        self._ended_at: float | None = None
        # Where the parser is: before or in a request's headers, or in its body.
        self._in_headers = False
        self._in_body = False
        # A head that has the parser read the body of a request that offers to upgrade: httptools believes in none.
        self._body_head: bytes | None = None
        # Bytes since the last one of a body: headers, or chunks' sizes, extensions and trailers.
        self._overhead = 0
        self._body_bytes = 0
        # What the clocks of the time-outs started with.
        self._idle_since = 0.0
        self._headers_since: float | None = None
        self._body_since = 0.0
        self._body_bytes_then = 0
        self._written = 0
        self._sent_then = 0
        self.unsent = 0
        self.sent_since = 0.0
        self._answering: RequestResponseCycle | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._idle_since = self.sent_since = self.loop.time()
        self._only_health = not self._table.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        self._unparsed = b""
        # Uvicorn tells the last request that came, which may be one that waits.
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whether the transport is closed later: to close a thousand at once takes long."""
        # Over TLS it is closed in any case.
        if self.scheme == "https" or self._table.turns.take():
            return False
        self._table.turns.wait(self.transport.close)
        return True

    def data_received(self, data: bytes) -> None:
        if self._ended_at is not None:
            return
        if self._unparsed:
            # It waits for its turn.
            self._unparsed = bytes(self._unparsed) + data
        elif len(data) <= _PIECE and (self._table.turns.take() or data.startswith(_HEALTH_REQUESTS)):
            self._parse(data)
        else:
            self._unparsed = memoryview(data)
            self._parse_in_turns()

    def _parse_in_turns(self) -> None:
        """Parse what came, of which each piece takes a turn."""
        turns = self._table.turns
        while self._unparsed:
            if not turns.take():
                self.flow.hold()
                turns.wait(self._parse_in_turn)
                return
            self._parse_piece()
        if self._ended_at is None:
            self.flow.release()

    def _parse_in_turn(self) -> None:
        self._parse_piece()
        self._parse_in_turns()

    def _parse_piece(self) -> None:
        piece, self._unparsed = self._unparsed[:_PIECE], self._unparsed[_PIECE:]
        if piece and not self.transport.is_closing():
            self._parse(piece)

    def _parse(self, piece: bytes | memoryview) -> None:
        self._overhead += len(piece)
        try:
            self.parser.feed_data(piece)
        except httptools.HttpParserUpgrade as offer:
            # It is answered as a request without it; what follows is its body, or the next request.
            if self._body_head is not None:
                self.parser.feed_data(self._body_head)
            if rest := piece[offer.args[0] :]:
                self._overhead = 0
                self._parse(rest)
                return
        except httptools.HttpParserError:
            self.refuse(self._refusal or _INVALID)
            return
        if self._overhead > self._most_header_bytes:
            self.refuse(self._headers_too_large())
        elif self._in_headers and self._headers_since is None:
            self._headers_since = self.loop.time()

    # What the parser calls; an exception ends the parsing.

    def on_message_begin(self) -> None:
        if self._body_head is not None:
            return
        if len(self.pipeline) >= _MOST_PIPELINED:
            self._raise(_TOO_MANY_PIPELINED)
        self._in_headers = True
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.url += url
        if len(self.url) > self._most_url:
            message = f"the URL has more than the {self._most_url} bytes that --max_url_bytes allows"
            self._raise(refuse_with(HTTPStatus.REQUEST_URI_TOO_LONG, message))

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a body are thrown away: nobody reads them.
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._body_head is not None:
            self._body_head = None
            return
        # What came before them in the same piece is not counted, so that a few bytes more may be let through by that.
        if self._overhead > self._most_header_bytes - _PIECE and self._header_bytes() > self._most_header_bytes:
            self._raise(self._headers_too_large())
        if len(self.headers) > self._most_headers:
            message = f"{len(self.headers)} headers are more than the {self._most_headers} that --max_headers allows"
            self._raise(refuse_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message))
        if self._only_health and not self._asks_for_health():
            self._raise(_NO_CONNECTION)
        super().on_headers_complete()
        if self._only_health:
            self.cycle.keep_alive = False
        if self.parser.should_upgrade():
            self._body_head = self._make_body_head()
        self._in_headers, self._in_body = False, True
        self._headers_since = None
        self._overhead = 0
        self._body_bytes = self._body_bytes_then = 0
        self._body_since = self.loop.time()
        self._table.idle.pop(self, None)

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._body_bytes += len(body)
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.body += body
            if len(cycle.body) > HIGH_WATER_LIMIT:
                self.flow.pause_reading()
            cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self._body_head is not None:
            return
        self._in_body = False
        self._overhead = 0
        super().on_message_complete()
        if self.cycle.response_complete:
            self._become_idle()

    def _make_body_head(self) -> bytes | None:
        """A head that tells of the body of the request that is being parsed; None if there is none."""
        if self.parser.get_method() == b"CONNECT":
            return None
        for name, value in self.headers:
            if name in (b"content-length", b"transfer-encoding"):
                return b"POST / HTTP/1.1\r\n%s: %s\r\n\r\n" % (name, value)
        return None

    def _raise(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise _RefusedError

    def _headers_too_large(self) -> Refusal:
        what = "a chunk's extension or the trailers are" if self._in_body else "request line and headers are"
        message = f"{what} larger than the {self._most_header_bytes} bytes that --max_header_bytes allows"
        return refuse_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def _header_bytes(self) -> int:
        """Bytes of the request line and the headers, each with one space and CRLF."""
        line = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n")
        return line + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def _asks_for_health(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        return path in HEALTH_PATHS and self.parser.get_method() in (b"GET", b"HEAD")

    # What the request's cycle calls.

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, partial(self._answer, app))

    async def _answer(
        self, app: ASGI3Application, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        """Let the application answer, and give back what the answer holds once its client has read it."""
        releases = collect_releases()

        async def count(message: ASGISendEvent) -> None:
            if message["type"] == "http.response.body":
                self._written += len(message.get("body", b""))
            await send(message)

        try:
            await app(scope, receive, count)
            if releases and self.flow.write_paused:
                await self.flow.drain()
        finally:
            for release in releases:
                release()

    def on_response_complete(self) -> None:
        """Uvicorn's, but for its timer: the table's check has the time-out of idle connections."""
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
            # What is left of the body is thrown away as it comes.
            self._body_since = self.loop.time()
        else:
            self._become_idle()

    def _start_next(self) -> None:
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())

    def _become_idle(self) -> None:
        self._idle_since = self.loop.time()
        if self._headers_since is not None:
            self._headers_since = self._idle_since
        self._table.idle[self] = None

    # What the table calls.

    def check(self, now: float) -> None:
        """End the connection if one of its time-outs is over."""
        limits = self._table.limits
        unsent = self.unsent = self.transport.get_write_buffer_size()
        # TLS tells only what waits above the socket's own buffer, which is the same until all of that has been sent.
        is_tls = self.scheme == "https"
        sent = count_acknowledged(self.transport) if unsent and is_tls else self._written - unsent
        if not unsent:
            self._sent_then, self.sent_since = 0 if is_tls else sent, now
        elif sent - self._sent_then >= _LEAST_PROGRESS:
            self._sent_then, self.sent_since = sent, now
        if self._ended_at in (None, math.inf) and self.transport.is_closing() and not self.is_unread():
            # Over TLS the client's own end is waited for.
            self._end(now)
        if now - self.sent_since > limits.answer_timeout:
            self._table.log.add(_SLOW_READER)
            self.transport.abort()
        elif self._ended_at is not None:
            if now - self._ended_at > _LINGER_SECONDS:
                self.transport.abort()
        elif self._unparsed:
            # It waits for its turn, for which the client is not to blame.
            self._idle_since = self._body_since = now
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
        if self._headers_since is not None:
            if now - self._headers_since > header_timeout:
                self.refuse(_SLOW_HEADERS)
        elif now - self._idle_since > (header_timeout if self.cycle is None else self._keep_alive_seconds):
            self._end(math.inf)
            self.transport.close()

    def _check_body(self, now: float) -> None:
        """The clock runs while the application waits for more, or once it has answered."""
        if self.flow.read_paused and not self.cycle.response_complete:
            self._body_since = now
        elif self._body_bytes - self._body_bytes_then >= _LEAST_PROGRESS and not self.cycle.response_complete:
            self._body_bytes_then, self._body_since = self._body_bytes, now
        elif now - self._body_since > self._table.limits.body_timeout:
            self.refuse(_SLOW_BODY)

    def leave(self, reason: str) -> None:
        """Close the connection, on which no request is under way, at once."""
        self._table.log.add(reason)
        self._end(math.inf)
        if self.scheme == "https" or self.is_unread():
            # To close would wait for the client.
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
            # Its answer is under way or done, or cannot be sent before those of others.
            self._end(math.inf)
            self.transport.close()
        else:
            if is_answering:
                cycle.disconnected = True
                cycle.message_event.set()
            self._end(self.loop.time())
            self.flow.resume_reading()
            self.flow.release()
            self.transport.write(refusal.answer)
            if self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                # TLS has an end of its own, for which the client is waited for.
                self.transport.close()

    def _end(self, since: float) -> None:
        self._ended_at = since
        self._unparsed = b""
        self._table.idle.pop(self, None)
