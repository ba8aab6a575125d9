"""OpenTelemetry's standard variables, as far as they say whether traces are exported, and how.

The exporters read the others themselves, such as OTEL_EXPORTER_OTLP_HEADERS:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from runners.core.errors import ArgumentsError

_GRPC, _HTTP = "grpc", "http/protobuf"
_DEFAULT_ENDPOINTS = {_GRPC: "http://localhost:4317", _HTTP: "http://localhost:4318"}
_EXPORTERS = ("otlp", "console", "none")
_SAMPLERS = (
    "always_on", "always_off", "traceidratio", "parentbased_always_on", "parentbased_always_off",
    "parentbased_traceidratio",
)  # fmt: skip
_NO_COMPRESSION = "none"
_COMPRESSIONS = {_GRPC: (_NO_COMPRESSION, "gzip"), _HTTP: (_NO_COMPRESSION, "gzip", "deflate")}
# OpenTelemetry's page of variables: those of batches of spans, and of the limits on one span.
_COUNTS = (
    "OTEL_BSP_SCHEDULE_DELAY", "OTEL_BSP_MAX_QUEUE_SIZE", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "OTEL_SPAN_LINK_COUNT_LIMIT", "OTEL_SPAN_EVENT_COUNT_LIMIT",
)  # fmt: skip
# The defaults of the specification.
_QUEUE, _EXPORT_BATCH = 2048, 512


@dataclass(frozen=True, slots=True)
class TraceSettings:
    """Where traces go.

    Attributes:
        exports_otlp: whether they go to a collector.
        exports_console: whether they are printed.
        protocol: OTLP's: grpc or http/protobuf.
        endpoint: the URL that gets the spans; it has no user or password.
        compression: none, gzip or, over HTTP, deflate.
        asked_by: the variable that asks for traces.
    """

    exports_otlp: bool
    exports_console: bool
    protocol: str
    endpoint: str
    compression: str
    asked_by: str


def read_trace_settings(environment: Mapping[str, str]) -> TraceSettings | None:
    """The settings, or None if nothing asks for traces.

    Traces are asked for by OTEL_TRACES_EXPORTER, or by the endpoint of a collector alone.

    Raises:
        ArgumentsError: a variable has a value that OpenTelemetry does not know; the SDK itself would go on without it.
    """
    variables = {name: value.strip() for name, value in environment.items() if name.startswith("OTEL_")}
    if variables.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    names = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    asked_by = next((name for name in names if variables.get(name)), None)
    if asked_by is None:
        return None
    chosen = variables.get("OTEL_TRACES_EXPORTER") or "otlp"
    exporters = {name.strip().lower() for name in chosen.split(",")}
    for name in exporters:
        _choose("OTEL_TRACES_EXPORTER", name, _EXPORTERS)
    exporters.discard("none")
    if not exporters:
        return None
    _choose(*_read_first(variables, "PROTOCOL"), (_GRPC, _HTTP))
    protocol = _read_first(variables, "PROTOCOL")[1] or _GRPC
    _choose(*_read_first(variables, "COMPRESSION"), _COMPRESSIONS[protocol])
    _check_values(variables)
    endpoint = _read_endpoint(variables, protocol)
    compression = _read_first(variables, "COMPRESSION")[1] or _NO_COMPRESSION
    return TraceSettings("otlp" in exporters, "console" in exporters, protocol, endpoint, compression, asked_by)


def _read_first(variables: Mapping[str, str], setting: str) -> tuple[str, str]:
    """The name and the value of an exporter's setting for traces, or else for all signals; empty if it is not set."""
    for name in (f"OTEL_EXPORTER_OTLP_TRACES_{setting}", f"OTEL_EXPORTER_OTLP_{setting}"):
        if variables.get(name):
            return name, variables[name]
    return name, ""


def _read_endpoint(variables: Mapping[str, str], protocol: str) -> str:
    name, endpoint = _read_first(variables, "ENDPOINT")
    if not endpoint:
        endpoint = _DEFAULT_ENDPOINTS[protocol]
    if "@" in endpoint:
        raise ArgumentsError(
            f"{name} must have no user and no password, which the logs of exporters show: set "
            "OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20..."
        )
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ArgumentsError(f"{name} is {endpoint!r}: it must be a URL, such as {_DEFAULT_ENDPOINTS[protocol]}")
    is_base = not variables.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return f"{endpoint.removesuffix('/')}/v1/traces" if protocol == _HTTP and is_base else endpoint


def _check_values(variables: Mapping[str, str]) -> None:
    sampler = variables.get("OTEL_TRACES_SAMPLER", "").lower()
    _choose("OTEL_TRACES_SAMPLER", sampler, _SAMPLERS)
    if sampler.endswith("traceidratio"):
        _check_number("OTEL_TRACES_SAMPLER_ARG", variables.get("OTEL_TRACES_SAMPLER_ARG", ""), _is_ratio, "from 0 to 1")
    _check_number(*_read_first(variables, "TIMEOUT"), lambda number: number > 0, "of seconds above 0")
    for name in _COUNTS:
        value = variables.get(name, "")
        if value and not (value.isdecimal() and int(value)):
            raise ArgumentsError(f"{name} is {value!r}: it must be a whole number above 0")
    queue, batch = variables.get("OTEL_BSP_MAX_QUEUE_SIZE"), variables.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE")
    if int(batch or _EXPORT_BATCH) > int(queue or _QUEUE):
        raise ArgumentsError(
            f"OTEL_BSP_MAX_EXPORT_BATCH_SIZE is {batch or _EXPORT_BATCH}: it must not exceed "
            f"OTEL_BSP_MAX_QUEUE_SIZE, {queue or _QUEUE}"
        )
    name, headers = _read_first(variables, "HEADERS")
    # The values are secrets.
    if any("=" not in header for header in headers.split(",") if header.strip()):
        raise ArgumentsError(f"{name} must be name=value, or several of these between commas")
    for setting in ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE"):
        name, path = _read_first(variables, setting)
        if path and not Path(path).is_file():
            raise ArgumentsError(f"{name}: there is no file {path}")


def _choose(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value and value not in allowed:
        raise ArgumentsError(f"{name} is {value!r}: it must be one of {', '.join(allowed)}")


def _check_number(name: str, value: str, fits: Callable[[float], bool], which: str) -> None:
    if not value:
        return
    try:
        is_right = fits(float(value))
    except ValueError:
        is_right = False
    if not is_right:
        raise ArgumentsError(f"{name} is {value!r}: it must be a number {which}")


def _is_ratio(number: float) -> bool:
    return 0 <= number <= 1
