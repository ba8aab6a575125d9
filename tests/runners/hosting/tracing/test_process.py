"""Tracing of a process: what is checked at its start, where spans go, and what becomes of a collector's failures."""

from __future__ import annotations

import importlib.abc
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from types import ModuleType
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from runners.core.errors import ArgumentsError
from runners.core.request_record import begin_record, end_record
from runners.hosting.tracing.export import ExportLog, QuietExporter
from runners.hosting.tracing.process import FLUSH_SECONDS, check_tracing, start_tracing
from tests.collector import Collector
from tests.servers import ROOT, free_port

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
EXPORTERS = "opentelemetry.exporter"
ROUTE = "/v1/models/{name}:predict"
Trace = Callable[[dict[str, str]], Callable[[], None]]


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(autouse=True)
def _shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is seen even if a test before has imported the service."""
    monkeypatch.setattr(logging.getLogger("runners"), "propagate", True)


@pytest.fixture
def trace(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trace]:
    """Start tracing with these variables; ends it after the test."""
    stops: list[Callable[[], None]] = []

    def start(variables: dict[str, str]) -> Callable[[], None]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        stops.append(start_tracing(os.environ))
        return stops[-1]

    yield start
    for stop in stops:
        stop()


def request() -> str:
    """A request that begins and ends; returns its trace."""
    record = begin_record("kserve_v1", ROUTE, "POST", lambda _: None)
    record.status = "200"
    end_record(record)
    return record.trace_id


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_both_protocols_and_their_settings(collector: Collector, trace: Trace, protocol: str, compression: str) -> None:
    others = {"OTEL_EXPORTER_OTLP_HEADERS": "x-key=secret", "OTEL_EXPORTER_OTLP_COMPRESSION": compression}
    trace({**collector.environment(protocol), **others})
    [span] = collector.wait_for(f"POST {ROUTE}", request())
    assert (span.kind, span.parent_id) == ("server", "")
    assert span.resource["service.name"] == "huggingface-runtime"
    assert collector.headers[-1]["x-key"] == "secret"


def test_the_console(trace: Trace, capsys: pytest.CaptureFixture[str]) -> None:
    stop = trace({"OTEL_TRACES_EXPORTER": "console"})
    trace_id = request()
    stop()
    assert trace_id in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {ENDPOINT: "http://collector:4317"},
            f"{ENDPOINT} asks for traces, whose exporter is not installed: pip install "
            "'bentoml-huggingface-runtime[tracing]', or unset it",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "OTEL_TRACES_EXPORTER asks for traces, whose exporter is not installed: pip install "
            "'bentoml-huggingface-runtime[tracing]', or unset it",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin': it must be one of otlp, console, none"),
        # BentoML's middleware reads it even if there are no traces.
        (
            {"OTEL_PROPAGATORS": "tracecontext,b4"},
            "OTEL_PROPAGATORS has 'b4', which is not installed; there are baggage, none",
        ),
        (
            {"OTEL_TRACES_EXPORTER": "console", "OTEL_PYTHON_EXCLUDED_URLS": "("},
            "OTEL_PYTHON_EXCLUDED_URLS is no list of regular expressions: missing ), unterminated subpattern at position 0",
        ),
        ({"OTEL_TRACES_EXPORTER": "console"}, None),
        ({}, None),
    ],
)
def test_the_check_before_the_start_without_exporters(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str | None
) -> None:
    class Blocker(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
            if name.startswith(EXPORTERS):
                raise ModuleNotFoundError(name)

    for name in [name for name in sys.modules if name.startswith(EXPORTERS)]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])
    if message is None:
        check_tracing(environment)
        return
    with pytest.raises(ArgumentsError) as raised:
        check_tracing(environment)
    # Packages of the tests may bring further propagators.
    assert str(raised.value).startswith(message)


def test_the_check_with_exporters() -> None:
    check_tracing({ENDPOINT: "http://collector:4317", "OTEL_PROPAGATORS": "none"})
    check_tracing({ENDPOINT: "http://collector:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})


@pytest.mark.parametrize("variables", [{}, {ENDPOINT: "http://localhost:1"}])
def test_nothing_is_imported_unless_it_is_asked_for(variables: dict[str, str]) -> None:
    """BentoML itself imports OpenTelemetry's API."""
    code = """
import os, sys
import service
from runners.hosting.tracing.process import start_tracing
start_tracing(os.environ)
print([name for name in ("opentelemetry.exporter.otlp", "opentelemetry.sdk.trace.export", "runners.hosting.tracing.tracer")
       if name in sys.modules])
os._exit(sys.stdout.flush() or 0)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment | variables, capture_output=True, text=True, check=True
    ).stdout
    assert bool(eval(printed)) is bool(variables)


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_away(trace: Trace, caplog: pytest.LogCaptureFixture, protocol: str) -> None:
    """Requests do not notice it, and the end of the worker waits for a bounded time."""
    address = f"http://127.0.0.1:{free_port()}"
    stop = trace(
        {
            ENDPOINT: address, "OTEL_EXPORTER_OTLP_PROTOCOL": protocol, "OTEL_BSP_SCHEDULE_DELAY": "1",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "30", "OTEL_BSP_MAX_QUEUE_SIZE": "8", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "4",
        }
    )  # fmt: skip
    started = perf_counter()
    for _ in range(500):
        request()
    assert perf_counter() - started < 1
    started = perf_counter()
    stop()
    assert perf_counter() - started < FLUSH_SECONDS + 1
    assert "Traceback" not in caplog.text
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) <= 1


class Flaky(SpanExporter):
    """An exporter with given results; an exception is raised."""

    def __init__(self, results: Sequence[SpanExportResult | Exception]) -> None:
        self._results = iter(results)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = next(self._results)
        if isinstance(result, Exception):
            raise result
        return result


def test_failures_are_logged_when_they_begin_and_end(caplog: pytest.LogCaptureFixture) -> None:
    fails, works = SpanExportResult.FAILURE, SpanExportResult.SUCCESS
    log = ExportLog()
    exporter = QuietExporter(Flaky([works, fails, fails, ValueError("odd"), works, works, fails]), "http://c", log)
    opentelemetry_record: Any = logging.makeLogRecord({"name": "opentelemetry", "msg": "code %s", "args": ("14",)})
    log.emit(opentelemetry_record)
    results = [exporter.export([]) for _ in range(7)]
    assert results == [works, fails, fails, fails, works, works, fails]
    # Exporters of the tests before may still log.
    records = [record for record in caplog.records if not record.name.startswith("opentelemetry")]
    assert [record.getMessage() for record in records if record.levelno >= logging.WARNING] == [
        "traces are lost, as http://c does not take them: code 14",
        "http://c takes traces again",
        "traces are lost, as http://c does not take them: ValueError: odd",
    ]


def test_the_last_spans_are_exported_at_the_end(collector: Collector, trace: Trace) -> None:
    before = {*threading.enumerate()}
    stop = trace({**collector.environment(), "OTEL_BSP_SCHEDULE_DELAY": "60000"})
    trace_id = request()
    assert not collector.find(f"POST {ROUTE}", trace_id)
    stop()
    assert collector.find(f"POST {ROUTE}", trace_id)
    # What comes later is not traced.
    assert request() == ""
    assert not [each for each in {*threading.enumerate()} - before if each.name.startswith("OtelBatch")]
