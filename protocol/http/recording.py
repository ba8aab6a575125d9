"""The record of each HTTP request, around the application that answers it."""

from __future__ import annotations

from functools import partial

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.disconnects import CLIENT, Client
from protocol.http.errors import name_status_refusal
from protocol.http.headers import first_headers
from runners.core.request_record import (
    CLIENT_LEFT,
    UNKNOWN_ROUTE,
    RequestRecord,
    begin_record,
    current_record,
    end_record,
)

SERVER = "server"
_STATUSES = {status: str(status) for status in range(100, 600)}
_FIRST_ERROR = 400


async def record_request(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Let an application answer a request whose record begins and ends here; the application notes the rest."""
    record = begin_record(SERVER, UNKNOWN_ROUTE, scope["method"], partial(_read_header, scope))
    record.path, record.scheme = scope["path"], scope.get("scheme", "http")
    try:
        await app(scope, receive, send)
    except Exception:
        if not record.status:
            record.status = _STATUSES[500]
        record.refusal = record.refusal or name_status_refusal(500)
        raise
    finally:
        if record.cancelled or not record.status:
            _note_cancelled(record, scope.get(CLIENT))
        end_record(record)


def note_status(status: int) -> None:
    """Note the status of the running request's answer, unless its client has left."""
    record = current_record.get()
    if record is not None and not record.cancelled:
        record.status = _STATUSES[status]


def note_cancelled() -> None:
    """Note that the client of the running request has left before the end of its answer."""
    if (record := current_record.get()) is not None:
        record.cancelled = True


def noting_status(send: Send) -> Send:
    """`send`, which notes the status of the answer of another application, such as BentoML's or vLLM's."""

    async def note(message: Message) -> None:
        if message["type"] == "http.response.start":
            note_other_status(message["status"])
        await send(message)

    return note


def note_other_status(status: int) -> None:
    """Note the status of an answer whose error, if it is one, is known by its status only."""
    note_status(status)
    if (record := current_record.get()) is not None:
        record.refusal = None if status < _FIRST_ERROR else record.refusal or name_status_refusal(status)


def _note_cancelled(record: RequestRecord, client: Client | None) -> None:
    """The status of a request whose client has not got the whole answer of the application."""
    if client is not None and client.refused:
        record.cancelled = False
        record.status, record.refusal = _STATUSES[client.refused], name_status_refusal(client.refused)
        return
    record.cancelled, record.refusal = True, None
    if not record.status:
        record.status = CLIENT_LEFT


def _read_header(scope: Scope, name: str) -> str | None:
    value = first_headers(scope).get(name.encode("latin-1"))
    return None if value is None else value.decode("latin-1")
