"""Answers that are sent in parts, as these come."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from protocol.http.errors import describe_error


class ClosingStream(StreamingResponse):
    """Sends the parts, and closes what makes them when it ends, whether the client has read them or not."""

    def __init__(self, parts: AsyncGenerator[Any, None], source: AsyncGenerator[Any, None], **answer: Any) -> None:
        """
        Args:
            parts: the bytes or texts to send.
            source: what `parts` reads from.
            answer: as Starlette's `StreamingResponse` takes it.
        """
        super().__init__(parts, **answer)
        self._parts = parts
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            # The client may have disconnected before the first part.
            await self._parts.aclose()
            await self._source.aclose()


async def stream_text(pieces: AsyncGenerator[str | None, None]) -> StreamingResponse:
    """Send each piece of a plain text when it comes; `pieces` is closed if the client disconnects.

    The first item of `pieces` is None: the request is accepted, and the answer begins. An earlier error is raised, so
    that the answer has its status; a later one closes the connection before the end, so that the client can tell.
    """
    accepted = await anext(pieces)
    assert accepted is None, "a stream begins once its request is accepted"

    async def texts() -> AsyncGenerator[str, None]:
        async for piece in pieces:
            if piece is not None:
                yield piece

    return _TextStream(texts(), pieces, media_type="text/plain")


class _TextStream(ClosingStream):
    async def stream_response(self, send: Send) -> None:
        """Send the answer; the server closes the connection of one that has no end."""
        try:
            await super().stream_response(send)
        except OSError:
            raise
        except Exception as error:
            describe_error(error)
