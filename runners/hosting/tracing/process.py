"""Tracing of a process: the check in BentoML's parent process, and the tracer of each worker."""

from __future__ import annotations

import atexit
import importlib.util
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from runners.core.errors import ArgumentsError
from runners.core.probe_paths import is_probe
from runners.core.request_record import add_observer, add_start_observer, remove_observer
from runners.core.trace_settings import TraceSettings, read_trace_settings
from runners.core.tracing import install_tracer
from runners.core.version import VERSION

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider

SERVICE_NAME = "huggingface-runtime"
EXCLUDED_VARIABLE = "OTEL_PYTHON_EXCLUDED_URLS"
# What BentoML answers; it can trace that itself.
_OF_BENTOML = re.compile(r"/schema\.json$|/static_content/")
# The end of a worker waits so long for its last spans.
FLUSH_SECONDS = 3.0
_EXPORTER = "opentelemetry.exporter.otlp.proto"


def check_tracing(environment: Mapping[str, str]) -> None:
    """In BentoML's parent process: check the variables of traces, and whether the exporters are installed.

    Raises:
        ArgumentsError: a variable is wrong, or the extra `tracing` is missing.
    """
    # BentoML's own middleware reads it too, and would end with a traceback.
    _check_propagators(environment.get("OTEL_PROPAGATORS", ""))
    settings = read_trace_settings(environment)
    if settings is None:
        return
    _read_excluded(environment)
    package = f"{_EXPORTER}.{'grpc' if settings.protocol == 'grpc' else 'http'}"
    if settings.exports_otlp and not _is_installed(package):
        raise ArgumentsError(
            f"{settings.asked_by} asks for traces, whose exporter is not installed: pip install "
            "'bentoml-huggingface-runtime[tracing]', or unset it"
        )


def _check_propagators(names: str) -> None:
    known = {each.name for each in entry_points(group="opentelemetry_propagator")} | {"none"}
    for name in filter(None, map(str.strip, names.split(","))):
        if name not in known:
            raise ArgumentsError(
                f"OTEL_PROPAGATORS has {name!r}, which is not installed; there are {', '.join(sorted(known))}"
            )


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _read_excluded(environment: Mapping[str, str]) -> Callable[[str, str], bool]:
    """Whether a request, by its method and its path, has no spans.

    The variable has regular expressions of paths between commas, as OpenTelemetry's instrumentations for Python read
    them.
    """
    if (text := environment.get(EXCLUDED_VARIABLE)) is None:
        return _is_excluded_by_default
    expressions = [each.strip() for each in text.split(",") if each.strip()]
    try:
        pattern = re.compile("|".join(expressions))
    except re.error as error:
        raise ArgumentsError(f"{EXCLUDED_VARIABLE} is no list of regular expressions: {error}") from error
    return lambda _, path: bool(expressions) and pattern.search(path) is not None


def _is_excluded_by_default(method: str, path: str) -> bool:
    return is_probe(method, path) or _OF_BENTOML.match(path) is not None


def start_tracing(environment: Mapping[str, str]) -> Callable[[], None]:
    """In a worker: trace requests from now on, if the environment asks for traces.

    Returns:
        A function that ends tracing, and returns within `FLUSH_SECONDS`.

    Raises:
        ArgumentsError: a variable is wrong; the parent process has checked them.
    """
    settings = read_trace_settings(environment)
    return (lambda: None) if settings is None else _start(settings, environment)


def _start(settings: TraceSettings, environment: Mapping[str, str]) -> Callable[[], None]:
    # Only those who ask for traces pay for these imports.
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    from runners.hosting.tracing.export import create_exporters
    from runners.hosting.tracing.tracer import OpenTelemetryTracer

    provider = TracerProvider(resource=_describe_process(), shutdown_on_exit=False)
    for exporter in create_exporters(settings):
        provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = OpenTelemetryTracer(provider, _read_excluded(environment), settings.exports_otlp)
    add_start_observer(tracer.start_request)
    add_observer(tracer.end_request)
    install_tracer(tracer)

    def stop() -> None:
        install_tracer(None)
        remove_observer(tracer.start_request)
        remove_observer(tracer.end_request)
        _flush(provider)

    return stop


def _flush(provider: TracerProvider) -> None:
    """Export the last spans, those of an engine in this process too; the SDK would wait for 30 s if it cannot."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import get_tracer_provider

    # vLLM makes its own provider the global one.
    engines = get_tracer_provider()
    providers = [provider, engines] if isinstance(engines, TracerProvider) else [provider]
    threads = [threading.Thread(target=each.shutdown, name="trace-flush", daemon=True) for each in providers]
    deadline = time.monotonic() + FLUSH_SECONDS
    for each, thread in zip(providers, threads, strict=True):
        atexit.unregister(each.shutdown)
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _describe_process() -> Resource:
    """What the variables say of this service, and what they leave out."""
    from opentelemetry.sdk.resources import Resource

    described = Resource.create()
    ours: dict[str, str | int] = {
        "service.name": SERVICE_NAME,
        "service.version": VERSION,
        "service.instance.id": str(uuid.uuid4()),
        "process.pid": os.getpid(),
    }
    named = not str(described.attributes["service.name"]).startswith("unknown_service")
    given = {name for name in described.attributes if name != "service.name" or named}
    return described.merge(Resource({name: value for name, value in ours.items() if name not in given}))
