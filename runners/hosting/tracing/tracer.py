"""Makes the spans of requests, of their phases, of batches and of calls to predictors.

The span of a request begins with it, so that others can refer to it. Those of its phases are made at its end, from the
moments of its record. A batch is a child of one of its requests, so that what it calls belongs to that trace; links
join it with all of its requests, in both directions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.trace import (
    Link,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TracerProvider,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from runners.core.request_record import ReadHeader, RequestRecord
from runners.core.tracing import Batch, Target, TracedCall
from runners.core.version import VERSION
from runners.hosting.tracing.attributes import (
    describe_call,
    describe_call_status,
    describe_head,
    describe_request,
    is_error,
    is_failed,
    is_grpc,
    name_call,
    name_request,
)

_NAME = "huggingface-runtime"
# The most links of a span: a batch may serve 256 requests, and a request may have thousands of batches.
MOST_LINKS = 64
# The phases of a request by their first and last moments.
_PHASES = (
    ("read", "started", "queued"),
    ("queue", "queued", "computing"),
    ("compute", "computing", "computed"),
    ("render", "rendering", "ended"),
)


class RequestTrace:
    """What is kept of a traced request, in its record.

    Attributes:
        span: its span; it records nothing if the request is not sampled.
        context: the span and the baggage that came with the request.
        offset: nanoseconds of the epoch at second 0 of `time.perf_counter`.
        batches: the first of its batches.
    """

    __slots__ = ("batches", "context", "offset", "span")

    def __init__(self, span: Span, context: Context, offset: int) -> None:
        self.span = span
        self.context = context
        self.offset = offset
        self.batches: list[SpanContext] = []

    def to_time(self, moment: float) -> int:
        """A moment of `time.perf_counter` in nanoseconds of the epoch."""
        return self.offset + round(moment * 1e9)


class OpenTelemetryTracer:
    """Implements `runners.core.tracing.Tracer`, and the observers of records."""

    def __init__(self, provider: TracerProvider, excludes: Callable[[str, str], bool], engines_trace: bool) -> None:
        """
        Args:
            excludes: whether a request, by its method and its path or gRPC method, has no spans.
            engines_trace: whether engines export spans of their own.
        """
        self._tracer = provider.get_tracer(_NAME, VERSION)
        self._excludes = excludes
        self._engines_trace = engines_trace
        self._for_engines = TraceContextTextMapPropagator()

    def start_request(self, record: RequestRecord, read_header: ReadHeader) -> None:
        """Begin the span of a request; see `StartObserver`."""
        stream = _current_stream.get()
        context = propagate.extract(read_header, getter=_HEADERS) if stream is None else stream.context
        offset = time.time_ns() - time.perf_counter_ns()
        span = self._tracer.start_span(
            name_request(record),
            context,
            SpanKind.SERVER if stream is None else SpanKind.INTERNAL,
            start_time=offset + round(record.started * 1e9),
        )
        identity = span.get_span_context()
        record.trace_id, record.span_id = f"{identity.trace_id:032x}", f"{identity.span_id:016x}"
        record.trace = RequestTrace(span, set_span_in_context(span, context), offset)
        if span.is_recording() and stream is None:
            span.set_attributes(describe_head(record, read_header))

    def end_request(self, record: RequestRecord) -> None:
        """Make the spans of a request's phases, and end its own; see `Observer`."""
        trace = record.trace
        if not isinstance(trace, RequestTrace) or not trace.span.is_recording() or self._is_excluded(record):
            # A span that does not end is not exported.
            return
        for name, first, last in _PHASES:
            start, end = getattr(record, first), getattr(record, last)
            if start and end:
                self._trace_phase(name, start, end, record, trace)
        span = trace.span
        span.update_name(name_request(record))
        span.set_attributes(describe_request(record))
        if is_failed(record):
            span.set_status(Status(StatusCode.ERROR))
        span.end(trace.to_time(record.ended))

    def _is_excluded(self, record: RequestRecord) -> bool:
        path = record.route if is_grpc(record) else record.path
        return self._excludes(record.method, path)

    def _trace_phase(self, name: str, start: float, end: float, record: RequestRecord, trace: RequestTrace) -> None:
        is_compute = name == "compute"
        links = [Link(batch) for batch in trace.batches] if is_compute else None
        span = self._tracer.start_span(name, trace.context, links=links, start_time=trace.to_time(start))
        if is_compute and record.first_token:
            span.add_event("first token", timestamp=trace.to_time(record.first_token))
        span.end(max(trace.to_time(start), trace.to_time(end)))

    @contextmanager
    def trace_batch(self, batch: Batch) -> Iterator[None]:
        traces = _distinct_traces(batch.records)
        sampled = [trace for trace in traces if trace.span.is_recording()][:MOST_LINKS]
        if not traces:
            yield
            return
        first = (sampled or traces)[0]
        span = self._tracer.start_span(
            "batch",
            first.context,
            links=[Link(trace.span.get_span_context()) for trace in sampled],
            attributes={
                "runtime.model_name": batch.model_name,
                "runtime.texts": batch.texts,
                "runtime.tokens": batch.tokens,
                "runtime.requests": len(traces),
            },
        )
        for trace in sampled:
            if len(trace.batches) < MOST_LINKS:
                trace.batches.append(span.get_span_context())
        token = _current_batch.set(set_span_in_context(span, first.context))
        try:
            yield
        except BaseException as error:
            _fail(span, type(error).__name__)
            raise
        finally:
            _current_batch.reset(token)
            span.end()

    @contextmanager
    def trace_call(self, target: Target) -> Iterator[TracedCall]:
        context = _current_batch.get()
        if context is None:
            yield TracedCall()
            return
        span = self._tracer.start_span(name_call(target), context, SpanKind.CLIENT, attributes=describe_call(target))
        call = _OpenTelemetryCall(span, set_span_in_context(span, context))
        try:
            yield call
        except BaseException as error:
            # The predictor's answer, if there was one, says more.
            if not call.answered:
                _fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    @contextmanager
    def trace_stream(self, record: RequestRecord, read_header: ReadHeader) -> Iterator[None]:
        self.start_request(record, read_header)
        trace = record.trace
        assert isinstance(trace, RequestTrace)
        token = _current_stream.set(trace)
        try:
            yield
        finally:
            _current_stream.reset(token)
            record.ended = time.perf_counter()
            self.end_request(record)

    def engine_headers(self, record: RequestRecord) -> Mapping[str, str]:
        headers: dict[str, str] = {}
        if self._engines_trace and isinstance(record.trace, RequestTrace):
            self._for_engines.inject(headers, record.trace.context)
        return headers


class _OpenTelemetryCall(TracedCall):
    """A call in a span; `answered` is whether its status has been noted."""

    def __init__(self, span: Span, context: Context) -> None:
        self._span = span
        self.answered = False
        headers: dict[str, str] = {}
        propagate.inject(headers, context)
        self.headers = {name.lower(): value for name, value in headers.items()}

    def note_status(self, status: int | str) -> None:
        self.answered = True
        self._span.set_attributes(describe_call_status(status))
        if is_error(status):
            self._span.set_status(Status(StatusCode.ERROR))


class _Headers(Getter[ReadHeader]):
    """Reads the headers of a request, as OpenTelemetry's propagators ask for them."""

    def get(self, carrier: ReadHeader, key: str) -> list[str] | None:
        value = carrier(key.lower())
        return None if value is None else [value]

    def keys(self, carrier: ReadHeader) -> list[str]:
        return []


_HEADERS = _Headers()
# The stream whose messages the running code answers, and the batch that the running thread computes.
_current_stream: ContextVar[RequestTrace | None] = ContextVar("current_stream", default=None)
_current_batch: ContextVar[Context | None] = ContextVar("current_batch", default=None)


def _distinct_traces(records: Sequence[RequestRecord]) -> list[RequestTrace]:
    return [trace for trace in dict.fromkeys(record.trace for record in records) if isinstance(trace, RequestTrace)]


def _fail(span: Span, error: str) -> None:
    span.set_attribute("error.type", error)
    span.set_status(Status(StatusCode.ERROR))
