"""The unread rest of a request's body: it is drained, or the answer announces the connection's end.

RFC 9112, section 9.3: a server that does not read the whole request must close the connection after its answer, and
announces that with `Connection: close`. Uvicorn would drain any amount after its answer.
"""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from protocol.http.errors import render_error
from protocol.http.headers import first_headers

# A larger rest of a body costs more than a new connection.
DRAINED_BYTES = 64 * 2**20
# The rest of a body gets this long to arrive before the answer.
_BODY_REST_SECONDS = 2.0
# How long a client that still sends may read the answer; an immediate close could lose it (RFC 9112, 9.6).
_LINGER_SECONDS = 5.0
_ANSWERED = "runtime.failure_answered"


async def answer_failure(request: Request, error: Exception) -> Response:
    """The answer to an unexpected error: a 500 with its number in the log, which has the details."""
    request.scope[_ANSWERED] = True
    return await render_error(request, error)


def is_answered(scope: Scope) -> bool:
    """Whether a request has had its answer to an unexpected error."""
    return _ANSWERED in scope


def watch_unread(scope: Scope, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """`receive` and `send` of a request whose body may be endless.

    What the answer leaves of the body is drained, so that the connection can be reused, or the answer announces that
    the connection is closed. Other requests keep theirs.
    """
    drainable = _is_drainable(scope)
    if drainable is None:
        return receive, send
    exchange = _Exchange(receive, send, drainable)
    return exchange.receive, exchange.send


def _is_drainable(scope: Scope) -> bool | None:
    """True for a body without a known length, False for one that is too long to drain, None if uvicorn drains it."""
    headers = first_headers(scope)
    if b"transfer-encoding" in headers:
        return True
    return None if int(headers.get(b"content-length", 0)) <= DRAINED_BYTES else False


class _Exchange:
    """A request whose body may be endless, and its answer."""

    def __init__(self, receive: Receive, send: Send, drainable: bool) -> None:
        self._receive = receive
        self._send = send
        self._drainable = drainable
        self._is_read = False
        self._closing = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._is_read = self._is_read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if not self._is_read and self._drainable:
                await self._drain(_BODY_REST_SECONDS, DRAINED_BYTES)
            if not self._is_read:
                self._closing = True
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
        elif self._closing and not message.get("more_body", False):
            # The client has the whole answer; the last message closes the connection.
            await self._send({**message, "more_body": True})
            await self._drain(_LINGER_SECONDS)
            message = {"type": "http.response.body"}
        await self._send(message)

    async def _drain(self, seconds: float, most: int | None = None) -> None:
        drained = 0
        try:
            async with asyncio.timeout(seconds):
                while not self._is_read and (most is None or drained <= most):
                    drained += len((await self.receive()).get("body", b""))
        except TimeoutError:
            pass
