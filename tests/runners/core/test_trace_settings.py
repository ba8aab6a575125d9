"""Which values of OpenTelemetry's variables ask for traces, and which are refused."""

from __future__ import annotations

import pytest

from runners.core.errors import ArgumentsError
from runners.core.trace_settings import TraceSettings, read_trace_settings

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"
COLLECTOR = {ENDPOINT: "http://collector:4317"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "name", "OTEL_TRACES_SAMPLER": "nonsense"},
        {"OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "none", **COLLECTOR},
        {"OTEL_SDK_DISABLED": "true", **COLLECTOR},
        {ENDPOINT: ""},
        {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://collector:4317"},
    ],
)
def test_nothing_asks_for_traces(environment: dict[str, str]) -> None:
    assert read_trace_settings(environment) is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (COLLECTOR, TraceSettings(True, False, "grpc", "http://collector:4317", "none", ENDPOINT)),
        (
            {**COLLECTOR, PROTOCOL: "http/protobuf"},
            TraceSettings(True, False, "http/protobuf", "http://collector:4317/v1/traces", "none", ENDPOINT),
        ),
        (
            {**COLLECTOR, TRACES_ENDPOINT: "https://other:1/spans", PROTOCOL: "http/protobuf"},
            TraceSettings(True, False, "http/protobuf", "https://other:1/spans", "none", TRACES_ENDPOINT),
        ),
        (
            {**COLLECTOR, PROTOCOL: "http/protobuf", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"},
            TraceSettings(True, False, "grpc", "http://collector:4317", "none", ENDPOINT),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp", PROTOCOL: "http/protobuf"},
            TraceSettings(
                True, False, "http/protobuf", "http://localhost:4318/v1/traces", "none", "OTEL_TRACES_EXPORTER"
            ),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp"},
            TraceSettings(True, False, "grpc", "http://localhost:4317", "none", "OTEL_TRACES_EXPORTER"),
        ),
        (
            {**COLLECTOR, PROTOCOL: "http/protobuf", "OTEL_EXPORTER_OTLP_COMPRESSION": "deflate"},
            TraceSettings(True, False, "http/protobuf", "http://collector:4317/v1/traces", "deflate", ENDPOINT),
        ),
        (
            {"OTEL_TRACES_EXPORTER": "otlp, console", "OTEL_SDK_DISABLED": "false"},
            TraceSettings(True, True, "grpc", "http://localhost:4317", "none", "OTEL_TRACES_EXPORTER"),
        ),
    ],
)
def test_traces_are_asked_for(environment: dict[str, str], expected: TraceSettings) -> None:
    assert read_trace_settings(environment) == expected


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin': it must be one of otlp, console, none"),
        (
            {ENDPOINT: "collector:4317"},
            f"{ENDPOINT} is 'collector:4317': it must be a URL, such as http://localhost:4317",
        ),
        ({ENDPOINT: "http://[::1"}, f"{ENDPOINT} is 'http://[::1': it must be a URL, such as http://localhost:4317"),
        (
            {TRACES_ENDPOINT: "http://"},
            f"{TRACES_ENDPOINT} is 'http://': it must be a URL, such as http://localhost:4317",
        ),
        *(
            (
                {ENDPOINT: f"{address}@collector:4317"},
                f"{ENDPOINT} must have no user and no password, which the logs of exporters show: set "
                "OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20...",
            )
            for address in ("https://me:hush", "me:hush", "https://me:hu/sh")
        ),
        ({**COLLECTOR, PROTOCOL: "http/json"}, f"{PROTOCOL} is 'http/json': it must be one of grpc, http/protobuf"),
        (
            {**COLLECTOR, "OTEL_TRACES_SAMPLER": "sometimes"},
            "OTEL_TRACES_SAMPLER is 'sometimes': it must be one of always_on, always_off, traceidratio, "
            "parentbased_always_on, parentbased_always_off, parentbased_traceidratio",
        ),
        (
            {**COLLECTOR, "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "10"},
            "OTEL_TRACES_SAMPLER_ARG is '10': it must be a number from 0 to 1",
        ),
        (
            {**COLLECTOR, "OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "all"},
            "OTEL_TRACES_SAMPLER_ARG is 'all': it must be a number from 0 to 1",
        ),
        (
            {**COLLECTOR, "OTEL_EXPORTER_OTLP_TIMEOUT": "-1"},
            "OTEL_EXPORTER_OTLP_TIMEOUT is '-1': it must be a number of seconds above 0",
        ),
        (
            {**COLLECTOR, "OTEL_BSP_MAX_QUEUE_SIZE": "0"},
            "OTEL_BSP_MAX_QUEUE_SIZE is '0': it must be a whole number above 0",
        ),
        (
            {**COLLECTOR, "OTEL_BSP_MAX_QUEUE_SIZE": "100"},
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE is 512: it must not exceed OTEL_BSP_MAX_QUEUE_SIZE, 100",
        ),
        (
            {**COLLECTOR, "OTEL_EXPORTER_OTLP_HEADERS": "authorization: secret"},
            "OTEL_EXPORTER_OTLP_HEADERS must be name=value, or several of these between commas",
        ),
        (
            {**COLLECTOR, "OTEL_EXPORTER_OTLP_COMPRESSION": "zstd"},
            "OTEL_EXPORTER_OTLP_COMPRESSION is 'zstd': it must be one of none, gzip",
        ),
        (
            {**COLLECTOR, "OTEL_EXPORTER_OTLP_CERTIFICATE": "/nowhere.pem"},
            "OTEL_EXPORTER_OTLP_CERTIFICATE: there is no file /nowhere.pem",
        ),
    ],
)
def test_a_wrong_value_is_named(environment: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentsError) as raised:
        read_trace_settings(environment)
    assert str(raised.value) == message
