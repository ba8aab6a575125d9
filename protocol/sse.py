"""Streams of server-sent events."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
from starlette.responses import StreamingResponse

logger = logging.getLogger(__name__)

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


async def stream_events(
    events: AsyncGenerator[Any, None],
    render_error: Callable[[Exception], Any],
    last: str | None = None,
    named: bool = False,
) -> StreamingResponse:
    """Send each event as JSON, as it comes; if the client leaves, `events` is closed.

    An error before the first event is raised, so that it gets a status of its own; a later one is an event.

    Args:
        render_error: the event that tells of an error.
        last: sent as it is at the end.
        named: whether an event's `type` is also its name.
    """
    first = await anext(events)

    def render(event: Any) -> bytes:
        name = b"event: " + event["type"].encode() + b"\n" if named else b""
        return name + _line(orjson.dumps(event))

    async def lines() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(events):
            try:
                yield render(first)
                async for event in events:
                    yield render(event)
            except Exception as error:
                logger.debug("a stream failed", exc_info=True)
                yield render(render_error(error))
            if last is not None:
                yield _line(last.encode())

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_HEADERS)


def _line(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
