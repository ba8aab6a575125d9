"""A collector of traces on loopback: OTLP over gRPC and over HTTP, by OpenTelemetry's own messages."""

from __future__ import annotations

import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.waiting import wait_until

KINDS = {1: "internal", 2: "server", 3: "client"}
STATUSES = {0: "unset", 1: "ok", 2: "error"}


@dataclass(frozen=True, slots=True)
class Span:
    """A span as it was exported; ids are hexadecimal, times nanoseconds of the epoch."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    events: list[str]
    status: str
    resource: dict[str, Any]

    @property
    def key(self) -> tuple[str, str]:
        """What a link to it has."""
        return self.trace_id, self.span_id


class Collector(TraceServiceServicer):
    """Both servers; `spans` are those that have come, `headers` what came with them."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.headers: list[dict[str, str]] = []
        self._grpc = grpc.server(ThreadPoolExecutor(4))
        add_TraceServiceServicer_to_server(self, self._grpc)  # type: ignore[no-untyped-call]
        self.grpc_endpoint = f"http://127.0.0.1:{self._grpc.add_insecure_port('127.0.0.1:0')}"
        self._grpc.start()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers["content-encoding"] == "gzip":
                    body = gzip.decompress(body)
                is_known = self.path == "/v1/traces"
                if is_known:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    collector.keep(ExportTraceServiceRequest.FromString(body), headers)
                self.send_response(200 if is_known else 404)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http_endpoint = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def Export(self, request: ExportTraceServiceRequest, context: grpc.ServicerContext) -> ExportTraceServiceResponse:  # noqa: N802
        self.keep(request, {str(name): str(value) for name, value in context.invocation_metadata()})
        return ExportTraceServiceResponse()

    def environment(self, protocol: str = "grpc") -> dict[str, str]:
        """The variables that send a server's traces here, soon."""
        endpoint = self.grpc_endpoint if protocol == "grpc" else self.http_endpoint
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }

    def keep(self, request: ExportTraceServiceRequest, headers: dict[str, str]) -> None:
        self.headers.append(headers)
        for resource_spans in request.resource_spans:
            resource = _read_attributes(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                self.spans += [_read_span(span, resource) for span in scope_spans.spans]

    def find(self, name: str, trace_id: str | None = None) -> list[Span]:
        """The spans of a name, in one trace or in all, by their start."""
        found = [span for span in list(self.spans) if span.name == name and trace_id in (None, span.trace_id)]
        return sorted(found, key=lambda span: span.start)

    def wait_for(self, name: str, trace_id: str | None = None, count: int = 1) -> list[Span]:
        """Wait until at least so many spans have come."""
        wait_until(lambda: len(self.find(name, trace_id)) >= count)
        return self.find(name, trace_id)

    def close(self) -> None:
        self._grpc.stop(None).wait()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _read_span(span: Any, resource: dict[str, Any]) -> Span:
    return Span(
        span.name,
        KINDS[span.kind],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano,
        span.end_time_unix_nano,
        _read_attributes(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        [event.name for event in span.events],
        STATUSES[span.status.code],
        resource,
    )


def _read_attributes(attributes: Any) -> dict[str, Any]:
    return {each.key: _read_value(each.value) for each in attributes}


def _read_value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_read_value(each) for each in value.array_value.values] if kind == "array_value" else getattr(value, kind)
