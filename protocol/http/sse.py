"""Streams of server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from protocol.http.streams import ClosingStream

logger = logging.getLogger(__name__)

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
# Shorter than the idle time-outs of proxies, which are 30 or 60 s.
KEEP_ALIVE_SECONDS = 15.0
# A comment, which clients ignore: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
_KEEP_ALIVE = b": keep-alive\n\n"


async def stream_events(
    events: AsyncGenerator[Any, None],
    render_error: Callable[[Exception], Any],
    last: str | None = None,
    named: bool = False,
) -> StreamingResponse:
    """Send each event as JSON when it comes; `events` is closed if the client disconnects.

    The first item of `events` is None: the request is accepted, and the answer begins. An earlier error is raised, so
    that the answer has its status; a later error becomes an event.

    Args:
        render_error: makes the event of an error.
        last: a text that is sent at the end.
        named: whether an event's `type` is also its name.
    """
    accepted = await anext(events)
    assert accepted is None, "a stream begins once its request is accepted"

    def render(event: Any) -> bytes:
        name = b"event: " + event["type"].encode() + b"\n" if named else b""
        return name + _line(orjson.dumps(event))

    async def lines() -> AsyncGenerator[bytes, None]:
        try:
            async for event in events:
                yield render(event)
        except Exception as error:
            logger.debug("a stream failed: %s", type(error).__name__)
            yield render(render_error(error))
        if last is not None:
            yield _line(last.encode())

    return _EventStream(lines(), events)


class _EventStream(ClosingStream):
    """The lines of a stream, with comments between them while nothing else is sent."""

    def __init__(self, lines: AsyncGenerator[bytes, None], events: AsyncGenerator[Any, None]) -> None:
        super().__init__(lines, events, media_type="text/event-stream", headers=_HEADERS)
        self._sent = False

    async def stream_response(self, send: Send) -> None:
        """Send the answer."""

        async def note(message: Message) -> None:
            self._sent = True
            await send(message)

        keeping_alive = asyncio.create_task(self._keep_alive(send))
        try:
            await note({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for line in self.body_iterator:
                await note({"type": "http.response.body", "body": line, "more_body": True})
        finally:
            keeping_alive.cancel()
            await asyncio.gather(keeping_alive, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _keep_alive(self, send: Send) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._sent = False
                await asyncio.sleep(KEEP_ALIVE_SECONDS)
                if not self._sent:
                    await send({"type": "http.response.body", "body": _KEEP_ALIVE, "more_body": True})


def _line(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
