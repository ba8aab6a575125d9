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
    events: AsyncGenerator[Any, None], render_error: Callable[[Exception], Any], last: str | None = None
) -> StreamingResponse:
    """Send each event as JSON, as it comes; if the client leaves, `events` is closed.

    An error before the first event is raised, so that it gets a status of its own; a later one is an event.

    Args:
        render_error: the event that tells of an error.
        last: sent as it is at the end.
    """
    first = await anext(events)

    async def lines() -> AsyncGenerator[bytes, None]:
        async with contextlib.aclosing(events):
            try:
                yield _line(orjson.dumps(first))
                async for event in events:
                    yield _line(orjson.dumps(event))
            except Exception as error:
                logger.debug("a stream failed", exc_info=True)
                yield _line(orjson.dumps(render_error(error)))
            if last is not None:
                yield _line(last.encode())

    return StreamingResponse(lines(), media_type="text/event-stream", headers=_HEADERS)


def _line(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"
