"""X-Request-Id: the client's id of a request, which the answer and the log repeat."""

from __future__ import annotations

from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.headers import first_headers
from runners.core.log_labels import model_label
from runners.core.request_record import current_record

# The id of the running request as the client sent it; None if it sent none.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_HEADER = b"x-request-id"


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
