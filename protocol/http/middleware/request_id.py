"""X-Request-Id: what the client calls its request, on the answer and in the log."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The client's name for the request that is being served, as it was sent; None where it gave none.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_HEADER = b"x-request-id"
_LONGEST = 128
_PACKAGES = frozenset({"protocol", "runners"})


def read_request_id(scope: Scope) -> bytes | None:
    """The value of a request's X-Request-Id; None without one, or where it is empty."""
    for name, value in scope["headers"]:
        if name == _HEADER:
            return value or None
    return None


class EchoRequestId:
    """Sets `request_id` for the time of a request, and sends it back with the answer, whatever that is."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = read_request_id(scope)
        # Also where there is none: a pipelined request starts in the context of the one before it.
        token = request_id.set(None if given is None else given.decode("latin-1"))
        try:
            await self._app(scope, receive, send if given is None else _echo(send, given))
        finally:
            request_id.reset(token)


def _echo(send: Send, given: bytes) -> Send:
    async def echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = (header for header in message.get("headers", ()) if header[0] != _HEADER)
            message = {**message, "headers": [*others, (_HEADER, given)]}
        await send(message)

    return echo


def label_log_records() -> None:
    """Let this server's log records end with the id of the request that they are written for."""
    logging.setLogRecordFactory(labelled(logging.getLogRecordFactory()))


def labelled(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A factory of records which adds the id to what `make` makes, for the loggers of this server."""

    def make_labelled(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        given = request_id.get()
        if given is not None and record.name.partition(".")[0] in _PACKAGES:
            record.msg, record.args = f"{record.getMessage()} (request_id={printable(given)})", None
        return record

    return make_labelled


def printable(text: str, longest: int = _LONGEST) -> str:
    """A client's text as a log line can take it: cut, on one line, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])
