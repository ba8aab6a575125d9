"""Writes short answers at once: uvicorn writes an answer's head and its body in two calls of the system."""

from __future__ import annotations

import re

from uvicorn._types import ASGISendEvent, HTTPResponseBodyEvent, HTTPResponseStartEvent
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from protocol.http.connections.clocks import AnswerClock

# Copying a longer body costs more than another call.
_LONGEST = 64 * 2**10
# Uvicorn refuses or changes other names, refuses these characters in values, and acts on these headers.
_UNUSUAL_IN_NAMES = re.compile(rb"[^a-z0-9-]")
_REFUSED_IN_VALUES = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_OF_THE_CONNECTION = frozenset({b"connection", b"transfer-encoding"})


class AnswerWriter:
    """Sends one answer. A head that declares a length waits for the body, which follows at once.

    Uvicorn writes what is not usual: streams, long bodies, answers to HEAD, and what it refuses.
    """

    __slots__ = ("_clock", "_cycle", "_head")

    def __init__(self, cycle: RequestResponseCycle, clock: AnswerClock) -> None:
        self._cycle = cycle
        self._clock = clock
        self._head: HTTPResponseStartEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Send a message of the application's."""
        head, self._head = self._head, None
        if message["type"] == "http.response.body":
            self._clock.written += len(message.get("body", b""))
            if head is not None and (answer := self._join(head, message)) is not None:
                self._write(answer)
                return
        elif (
            message["type"] == "http.response.start"
            and head is None
            and not self._cycle.response_started
            and b"content-length" in dict(message.get("headers", ()))
        ):
            self._head = message
            return
        if head is not None:
            await self._cycle.send(head)
        # Uvicorn refuses a second head.
        await self._cycle.send(message)

    def _join(self, head: HTTPResponseStartEvent, last: HTTPResponseBodyEvent) -> bytes | None:
        """The bytes of a whole answer; None if it is not usual."""
        cycle = self._cycle
        body = last.get("body", b"")
        pairs = list(head.get("headers", ()))
        headers = dict(pairs)
        is_usual = (
            len(body) <= _LONGEST
            and not last.get("more_body", False)
            and headers[b"content-length"] == b"%d" % len(body)
            # No name is there twice.
            and len(headers) == len(pairs)
            and _OF_THE_CONNECTION.isdisjoint(headers)
            and _UNUSUAL_IN_NAMES.search(b"".join(headers)) is None
            and _REFUSED_IN_VALUES.search(b"".join(headers.values())) is None
            and not cycle.access_log
            and not cycle.flow.write_paused
            and not cycle.disconnected
            and cycle.scope["method"] != "HEAD"
        )
        if not is_usual:
            return None
        parts = [STATUS_LINE[head["status"]]]
        for name, value in (*cycle.default_headers, *pairs):
            parts += name, b": ", value, b"\r\n"
        parts += b"\r\n" if cycle.keep_alive else b"connection: close\r\n\r\n", body
        return b"".join(parts)

    def _write(self, answer: bytes) -> None:
        """Write a whole answer, and note that the cycle has ended, as uvicorn does."""
        cycle = self._cycle
        cycle.response_started = cycle.response_complete = True
        cycle.waiting_for_100_continue = False
        cycle.transport.write(answer)
        cycle.message_event.set()
        if not cycle.keep_alive:
            cycle.transport.close()
        cycle.on_response()
