"""What a tracer is told of batches, calls and streams; nothing happens here unless a tracer is installed.

Requests are told by the observers of their records (`runners.core.request_record`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from runners.core.request_record import ReadHeader, RequestRecord


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch that begins.

    Attributes:
        records: of its requests; a request may have several texts in it, and its record then comes several times.
    """

    model_name: str
    records: Sequence[RequestRecord]
    texts: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a call to another server goes.

    Attributes:
        method: the HTTP method; empty for gRPC.
        path: the path of HTTP, or the gRPC method as /service/method.
        address: the host, with its port if that is not the scheme's.
        scheme: http or https; empty for gRPC.
    """

    method: str
    path: str
    address: str
    scheme: str = ""


class TracedCall:
    """A call to another server; without a tracer it has no headers, and notes nothing.

    Attributes:
        headers: hand the trace on to the other server; names are in lower case.
    """

    headers: Mapping[str, str] = {}

    def note_status(self, status: int | str) -> None:
        """Note the answer's HTTP status, or the name of its gRPC status."""


class Tracer(Protocol):
    """Makes spans; the context managers surround the work, which may raise."""

    def trace_batch(self, batch: Batch) -> AbstractContextManager[None]:
        """A span for a batch, in the thread that runs it; also if no request of it is traced."""

    def trace_call(self, target: Target) -> AbstractContextManager[TracedCall]:
        """A span for a call that the running thread makes for its batch; none outside of batches."""

    def trace_stream(self, record: RequestRecord, read_header: ReadHeader) -> AbstractContextManager[None]:
        """A span for a stream of gRPC, whose messages have records and spans of their own below it.

        Args:
            record: the stream's own; its status is read at the end.
        """

    def engine_headers(self, record: RequestRecord) -> Mapping[str, str]:
        """The W3C headers that continue the trace of a request in an engine that makes spans too; empty for none."""


_UNTRACED: AbstractContextManager[None] = nullcontext()
_UNTRACED_CALL: AbstractContextManager[TracedCall] = nullcontext(TracedCall())
_tracer: Tracer | None = None


def install_tracer(tracer: Tracer | None) -> None:
    """Let a tracer hear of all that follows; None for no tracer."""
    global _tracer
    _tracer = tracer


def is_tracing() -> bool:
    return _tracer is not None


def trace_batch(batch: Batch) -> AbstractContextManager[None]:
    """See `Tracer.trace_batch`."""
    return _UNTRACED if _tracer is None else _tracer.trace_batch(batch)


def trace_call(target: Target) -> AbstractContextManager[TracedCall]:
    """See `Tracer.trace_call`."""
    return _UNTRACED_CALL if _tracer is None else _tracer.trace_call(target)


def trace_stream(record: RequestRecord, read_header: ReadHeader) -> AbstractContextManager[None]:
    """See `Tracer.trace_stream`."""
    return _UNTRACED if _tracer is None else _tracer.trace_stream(record, read_header)


def engine_headers(record: RequestRecord | None) -> Mapping[str, str]:
    """See `Tracer.engine_headers`."""
    return {} if _tracer is None or record is None else _tracer.engine_headers(record)
