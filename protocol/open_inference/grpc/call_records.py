"""The records of gRPC calls and of the messages of streams."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType

import grpc

from protocol.http.middleware.request_id import request_id
from protocol.open_inference.grpc.intake import Context
from runners.core.request_record import CANCELLED, ReadHeader, RequestRecord, begin_record, end_record
from runners.core.tracing import trace_stream

PROTOCOL = "grpc"
_METHOD = "gRPC"


class CallRecord:
    """A context with the record of a call, which ends with it; `describe_for_grpc` notes the status of an error."""

    __slots__ = ("_context", "_read_header", "_record", "_route")

    def __init__(self, route: str, read_header: ReadHeader, context: Context | None = None) -> None:
        """
        Args:
            route: the call's method.
            read_header: reads the call's metadata.
            context: of the call; None for a message of a stream.
        """
        self._route = route
        self._read_header = read_header
        self._context = context
        self._record: RequestRecord | None = None

    def __enter__(self) -> RequestRecord:
        record = self._record = begin_record(PROTOCOL, self._route, _METHOD, self._read_header)
        if self._context is None:
            record.request_id = request_id.get()
        return record

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        record = self._record
        assert record is not None, "a record ends after it has begun"
        _note_end(record, error, self._context)
        end_record(record)


@contextlib.contextmanager
def trace_whole_stream(route: str, context: Context) -> Iterator[None]:
    """Trace a stream, which has no record that observers get: its messages have."""
    record = RequestRecord(PROTOCOL, route, _METHOD)
    with trace_stream(record, read_metadata(context)):
        try:
            yield
        except BaseException as error:
            _note_end(record, error, context)
            raise
        else:
            _note_end(record, None, context)


def _note_end(record: RequestRecord, error: BaseException | None, context: Context | None) -> None:
    """Note how a call has ended."""
    if isinstance(error, asyncio.CancelledError):
        record.status, record.cancelled, record.refusal = CANCELLED, True, None
    elif not record.status:
        record.status = "OK" if error is None else _read_code(context)


def _read_code(context: Context | None) -> str:
    """The code that a handler has aborted its call with."""
    code = None if context is None else context.code()
    return str(code.name if isinstance(code, grpc.StatusCode) else grpc.StatusCode.UNKNOWN.name)


def read_metadata(context: Context) -> ReadHeader:
    """Reads a call's metadata by name; binary values are left out."""

    def read(name: str) -> str | None:
        value = dict(context.invocation_metadata() or ()).get(name)
        return value if isinstance(value, str) else None

    return read
