"""X-Request-Id: the client's id of a request, which the answer and the log repeat; and the labels of log records."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.headers import first_headers
from runners.core.log_labels import model_label
from runners.core.request_record import current_record

# The id of the running request as the client sent it; None if it sent none.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_HEADER = b"x-request-id"
_LONGEST = 128
_PACKAGES = frozenset({"protocol", "runners"})


def read_request_id(scope: Scope) -> bytes | None:
    """The value of a request's X-Request-Id; None if it is missing or empty."""
    return first_headers(scope).get(_HEADER) or None


async def echo_request_id(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Pass a request to an application while `request_id` is set, and add the id to the answer.

    It is set also without an id: a pipelined request starts in the context of the one before it.
    """
    model_label.set(None)
    client_id = read_request_id(scope)
    text = None if client_id is None else client_id.decode("latin-1")
    token = request_id.set(text)
    if (record := current_record.get()) is not None:
        record.request_id = text
    try:
        await app(scope, receive, send if client_id is None else _echoing(send, client_id))
    finally:
        request_id.reset(token)


def _echoing(send: Send, client_id: bytes) -> Send:
    """`send`, which adds the id to the answer."""

    async def echo(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = (header for header in message.get("headers", ()) if header[0] != _HEADER)
            message = {**message, "headers": [*others, (_HEADER, client_id)]}
        await send(message)

    return echo


def label_log_records() -> None:
    """Add the model and the id of the running request to this server's log records."""
    logging.setLogRecordFactory(labelled(logging.getLogRecordFactory()))


def labelled(make: Callable[..., logging.LogRecord]) -> Callable[..., logging.LogRecord]:
    """A factory of log records that adds the model and the id to the records of this server's loggers."""

    def make_labelled(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        client_id, model = request_id.get(), model_label.get()
        labels = [] if model is None else [f"model={printable(model)}"]
        labels += [] if client_id is None else [f"request_id={printable(client_id)}"]
        if labels and record.name.partition(".")[0] in _PACKAGES:
            record.msg, record.args = f"{record.getMessage()} ({', '.join(labels)})", None
        return record

    return make_labelled


def printable(text: str, longest: int = _LONGEST) -> str:
    """A client's text for a log line: shortened, on one line, without control characters."""
    return "".join(character if character.isprintable() else "?" for character in text[:longest])
