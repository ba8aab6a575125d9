"""The parsing half of a connection: bytes are parsed in turns, and heads that exceed a limit are refused."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NoReturn

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from protocol.http.connections.clocks import RequestClock
from protocol.http.connections.flow import HoldableFlow
from protocol.http.connections.head_limits import HeadLimits, count_bytes, make_body_head
from protocol.http.connections.refusals import Refusal, refuse_with
from protocol.http.open_paths import HEALTH_PATHS
from runners.core.url_paths import strip_prefix

if TYPE_CHECKING:
    from protocol.http.connections.connection_table import ConnectionTable

# Bytes parsed at once. They hold some thousands of the smallest headers or chunks, which take 1 to 2 ms to parse.
_PIECE = 16 * 2**10
# The most requests on a connection that wait for the answer to an earlier one.
_MOST_PIPELINED = 64

_INVALID = refuse_with(HTTPStatus.BAD_REQUEST, "this is not HTTP/1.1")
_TOO_MANY_PIPELINED = Refusal("a connection with too many pipelined requests")
_NO_CONNECTION = refuse_with(
    HTTPStatus.SERVICE_UNAVAILABLE, "the server has as many connections as it takes (max_connections)", retry_after=1
)


class _RefusedError(Exception):
    """Raised in a callback of the parser to end the parsing."""


class TurnParsingProtocol(HttpToolsProtocol):
    """Uvicorn's protocol, which parses in turns, so that no iteration of the event loop takes long."""

    flow: HoldableFlow

    def __init__(
        self,
        table: ConnectionTable,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._table = table
        self._head_limits = HeadLimits(table.limits)
        # Whether the connection is beyond the limit.
        self._only_health = False
        # Bytes that came and wait for their turns.
        self._unparsed: bytes | memoryview = b""
        self._refusal: Refusal | None = None
        # When the connection stopped parsing; infinite while earlier requests are being answered.
        self._ended_at: float | None = None
        # Where the parser is: before or in a request's headers, or in its body.
        self._in_headers = False
        self._in_body = False
        # A head that makes the parser read the body of a request that offers to upgrade: httptools expects no body.
        self._body_head: bytes | None = None
        # Bytes since the last data of a body: headers, or the sizes, extensions and trailers of chunks.
        self._overhead = 0
        self._clock = RequestClock()

    @abstractmethod
    def refuse(self, refusal: Refusal) -> None:
        """Answer the request that is being parsed, if it can be answered, and close the connection."""

    @abstractmethod
    def _become_idle(self) -> None:
        """Note that no request is under way."""

    @abstractmethod
    def _become_busy(self) -> None:
        """Note that a request is under way."""

    # What the transport calls.

    def data_received(self, data: bytes) -> None:
        if self._ended_at is not None:
            return
        if self._unparsed:
            # Earlier bytes wait for their turn.
            self._unparsed = bytes(self._unparsed) + data
        elif len(data) <= _PIECE and (self._table.turns.take() or data.startswith(self._table.health_requests)):
            self._parse(data)
        else:
            self._unparsed = memoryview(data)
            self._parse_in_turns()

    def _parse_in_turns(self) -> None:
        """Parse the bytes that came; each piece takes a turn."""
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
            # It is answered as a plain request; its body follows, or the next request.
            if self._body_head is not None:
                self.parser.feed_data(self._body_head)
            if rest := piece[offer.args[0] :]:
                self._overhead = 0
                self._parse(rest)
                return
        except httptools.HttpParserError:
            self.refuse(self._refusal or _INVALID)
            return
        if self._overhead > self._head_limits.header_bytes:
            self.refuse(self._head_limits.refuse_bytes(self._in_body))
        elif self._in_headers:
            self._clock.begin_headers(self.loop.time())

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
        if (refusal := self._head_limits.check_url(self.url)) is not None:
            self._raise(refusal)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Trailers of a body are discarded: nothing reads them.
        if self._in_headers:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._body_head is not None:
            self._body_head = None
            return
        self._check_head()
        if self._only_health and not self._asks_for_health():
            self._raise(_NO_CONNECTION)
        super().on_headers_complete()
        if self._only_health:
            self.cycle.keep_alive = False
        if self.parser.should_upgrade():
            self._body_head = make_body_head(self.parser.get_method(), self.headers)
        self._in_headers, self._in_body = False, True
        self._overhead = 0
        self._clock.begin_body(self.loop.time())
        self._become_busy()

    def on_body(self, body: bytes) -> None:
        self._overhead = 0
        self._clock.body_bytes += len(body)
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

    def _check_head(self) -> None:
        limits = self._head_limits
        # Bytes before the headers in the same piece are not counted, which lets through a few bytes more.
        is_near = self._overhead > limits.header_bytes - _PIECE
        if is_near and count_bytes(self.parser.get_method(), self.url, self.headers) > limits.header_bytes:
            self._raise(limits.refuse_bytes(self._in_body))
        if (refusal := limits.check_count(self.headers)) is not None:
            self._raise(refusal)

    def _raise(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise _RefusedError

    def _asks_for_health(self) -> bool:
        path = self.url.partition(b"?")[0].decode("latin-1")
        is_health = strip_prefix(path, self._table.root_path) in HEALTH_PATHS
        return is_health and self.parser.get_method() in (b"GET", b"HEAD")
