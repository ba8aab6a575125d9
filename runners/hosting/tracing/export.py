"""The exporters of spans; the log has one line when they begin to fail, and one when they recover."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

import grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SpanExporter, SpanExportResult

from runners.core.trace_settings import TraceSettings

logger = logging.getLogger(__name__)

_LONGEST_REASON = 300


def create_exporters(settings: TraceSettings) -> list[SpanExporter]:
    """The exporters that the settings ask for; they read further variables themselves."""
    exporters: list[SpanExporter] = [ConsoleSpanExporter(out=sys.stdout)] if settings.exports_console else []
    if settings.exports_otlp:
        log = _take_log()
        exporters.append(QuietExporter(_create_otlp_exporter(settings), settings.endpoint, log))
    return exporters


def _create_otlp_exporter(settings: TraceSettings) -> SpanExporter:
    if settings.protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        # The exporter would refuse the variable's value "none", which the specification has.
        compression = grpc.Compression.Gzip if settings.compression == "gzip" else grpc.Compression.NoCompression
        return GrpcExporter(endpoint=settings.endpoint, compression=compression)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    return HttpExporter(endpoint=settings.endpoint)


class QuietExporter(SpanExporter):
    """An exporter that logs when it begins to fail and when it works again, and not each batch that is lost."""

    def __init__(self, exporter: SpanExporter, endpoint: str, log: ExportLog) -> None:
        self._exporter = exporter
        self._endpoint = endpoint
        self._log = log
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:
            self._log.reason = f"{type(error).__name__}: {error}"
            result = SpanExportResult.FAILURE
        fails = result is not SpanExportResult.SUCCESS
        if fails and not self._failing:
            logger.warning("traces are lost, as %s does not take them: %s", self._endpoint, self._log.reason)
        elif self._failing and not fails:
            logger.warning("%s takes traces again", self._endpoint)
        self._failing = fails
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


class ExportLog(logging.Handler):
    """OpenTelemetry's own log, which has a line for each attempt; it is shown at debug.

    Attributes:
        reason: its last line.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.reason = "no reason is known"

    def emit(self, record: logging.LogRecord) -> None:
        self.reason = " ".join(record.getMessage().split())[:_LONGEST_REASON]
        logger.debug("%s: %s", record.name, self.reason)


def _take_log() -> ExportLog:
    """Let OpenTelemetry's loggers tell one handler, and nobody else."""
    opentelemetry_logger = logging.getLogger("opentelemetry")
    log = next((each for each in opentelemetry_logger.handlers if isinstance(each, ExportLog)), None) or ExportLog()
    opentelemetry_logger.handlers = [log]
    opentelemetry_logger.propagate = False
    return log
