"""The operator's settings of BentoML's: what they become, and what a line says of."""

from __future__ import annotations

from typing import Any

import pytest
from bentoml._internal.configuration.containers import BentoMLContainer

from runners.core.argument_sources import read_configuration
from runners.core.errors import ArgumentsError
from runners.hosting.operator_settings import OperatorSettings, read_operator_settings

NAME = "huggingface_runtime"
CORS = {"enabled": True, "access_control_allow_origins": ["https://a.example"]}


def read(services: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> OperatorSettings:
    monkeypatch.setattr(BentoMLContainer.config, "get", lambda: {"services": services})
    return read_operator_settings(NAME)


def remark(settings: OperatorSettings, **arguments: Any) -> list[str]:
    environment: dict[str, str] = arguments.pop("environment", {})
    settings.set_variables(environment)
    configuration = read_configuration(arguments, {}, {}, settings=settings.to_arguments())
    return [*settings.list_remarks(configuration.arguments, environment)]


def test_settings_of_the_service_win_over_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    services = {
        "traffic": {"timeout": 5, "max_concurrency": 7},
        "workers": 2,
        NAME: {"traffic": {"max_concurrency": 8}, "tracing": {"otlp": {"http": {"headers": {"a": "b"}}}}},
        "Gateway": {"traffic": {"timeout": 1}},
    }
    assert read(services, monkeypatch).values == {
        "traffic.timeout": 5, "traffic.max_concurrency": 8, "workers": 2, "tracing.otlp.http.headers": {"a": "b"},
    }  # fmt: skip
    assert read({}, monkeypatch) == OperatorSettings({})


@pytest.mark.parametrize(
    ("services", "arguments"),
    [
        ({"traffic": {"max_concurrency": 7}}, {"max_concurrent_requests": 7}),
        ({"logging": {"access": {"enabled": True}}}, {"access_log": True}),
        ({"logging": {"access": {"enabled": False}}}, {"access_log": False}),
        (
            {
                "http": {
                    "cors": {**CORS, "access_control_allow_methods": "GET", "access_control_allow_headers": ["A", "B"]}
                }
            },
            {"allowed_origins": ("https://a.example",), "allowed_methods": ("GET",), "allowed_headers": ("A", "B")},
        ),
        ({"http": {"cors": {**CORS, "access_control_allow_credentials": True}}}, {"allow_credentials": True}),
        ({"http": {"cors": {**CORS, "enabled": False}}}, {"allowed_origins": ()}),
        (
            {"ssl": {"enabled": True, "certfile": "c", "keyfile": "k", "ca_certs": "a"}},
            {"ssl_certfile": "c", "ssl_keyfile": "k", "ssl_ca_certs": "a"},
        ),
        ({"ssl": {"certfile": "c", "keyfile": "k"}}, {"ssl_certfile": None}),
    ],
)
def test_arguments(services: dict[str, Any], arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(services, monkeypatch)
    found = read_configuration({}, {}, {}, settings=settings.to_arguments()).arguments
    assert {name: getattr(found, name) for name in arguments} == arguments


def test_an_argument_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read({"traffic": {"max_concurrency": 7}}, monkeypatch)
    given, variables = {"max_concurrent_requests": 9}, {"RUNTIME_MAX_CONCURRENT_REQUESTS": "9"}
    nothing: dict[str, Any] = {}
    for line, environment, bento in (
        (given, nothing, nothing),
        (nothing, variables, nothing),
        (nothing, nothing, given),
    ):
        found = read_configuration(line, environment, bento, settings=settings.to_arguments()).arguments
        assert found.max_concurrent_requests == 9
    assert remark(settings) == []
    assert remark(settings, max_concurrent_requests=9) == [
        "services.traffic.max_concurrency of BentoML's configuration has no effect: the argument "
        "max_concurrent_requests is set"
    ]


def test_a_wrong_value_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    cors = {**CORS, "access_control_allow_origins": "a.example"}
    with pytest.raises(ArgumentsError, match=r"from services\.http\.cors\.access_control_allow_origins of BentoML's"):
        remark(read({"http": {"cors": cors}}, monkeypatch))


@pytest.mark.parametrize(("most", "workers", "each"), [(8, 2, 4), (7, 2, 4), (1, 4, 1)])
def test_the_workers_share_what_runs_at_once(
    most: int, workers: int, each: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read({"traffic": {"max_concurrency": most}}, monkeypatch)
    assert settings.to_arguments(workers)["max_concurrent_requests"].value == each


def test_cors_without_an_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    rest = {
        "access_control_allow_origin_regex": "https://.*",
        "access_control_expose_headers": "X-A",
        "access_control_max_age": 5,
    }
    settings = read({"http": {"cors": {"enabled": True, **rest}}}, monkeypatch)
    assert settings.to_cors() == {"origin_pattern": "https://.*", "exposed": ["X-A"], "max_age": 5}
    assert read({"http": {"cors": {"enabled": False, **rest}}}, monkeypatch).to_cors() == {}


@pytest.mark.parametrize(
    ("tracing", "variables"),
    [
        ({}, {}),
        ({"exporter_type": "zipkin", "zipkin": {"endpoint": "http://z"}}, {}),
        (
            {"exporter_type": "OTLP", "sample_rate": 0.5, "otlp": {"endpoint": "http://c:4317", "protocol": "grpc"}},
            {
                "OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0.5", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4317",
                "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc",
            },
        ),
        (
            {
                "exporter_type": "otlp", "timeout": 3, "excluded_urls": ["/a", "/b"], "max_tag_value_length": 9,
                "otlp": {
                    "protocol": "http", "compression": "gzip",
                    "http": {"headers": {"authorization": "Basic a=,"}, "certificate_file": "/c.pem"},
                },
            },
            {
                "OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "0", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
                "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT": "3", "OTEL_PYTHON_EXCLUDED_URLS": "/a,/b",
                "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "9", "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION": "gzip",
                "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "authorization=Basic%20a%3D%2C",
                "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE": "/c.pem",
            },
        ),
        (
            {"exporter_type": "otlp", "sample_rate": 1.0, "otlp": {"grpc": {"headers": [["a", "b"], ["c", "d"]], "insecure": True}}},
            {
                "OTEL_TRACES_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
                "OTEL_TRACES_SAMPLER_ARG": "1.0", "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "a=b,c=d",
                "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true",
            },
        ),
    ],
)  # fmt: skip
def test_variables_of_traces(
    tracing: dict[str, Any], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = read({"tracing": tracing}, monkeypatch)
    environment = {"OTEL_TRACES_SAMPLER_ARG": "mine"} if variables else {}
    expected = variables | environment
    settings.set_variables(environment)
    assert environment == expected
    assert settings.to_variables() == variables


@pytest.mark.parametrize(
    ("services", "remarks"),
    [
        ({"workers": 3, "resources": {"gpu": 1}, "http": {"port": 3001}, "runner_connection": {"max_age": 5.0}}, []),
        (
            {"traffic": {"timeout": 5}},
            [
                "services.traffic.timeout of BentoML's configuration has no effect: this server sets no time limit "
                "for requests, so set one in the reverse proxy; the proxies of services that depend on this one obey it"
            ],
        ),
        (
            {"batching": {"enabled": True}, NAME: {"grpc": {"max_concurrent_streams": 5}}},
            [
                "services.batching.enabled of BentoML's configuration has no effect: the engine makes batches of what "
                "waits; --max_batch_tokens bounds them",
                "services.grpc.max_concurrent_streams of BentoML's configuration has no effect: set --max_streams",
            ],
        ),
        (
            {"http": {"cors": {"access_control_max_age": 5}}},
            [
                "services.http.cors.access_control_max_age of BentoML's configuration has no effect: http.cors.enabled "
                "is not true"
            ],
        ),
        (
            {NAME: {"traffic": {"max_concurency": 5}}},
            ["services.traffic.max_concurency of BentoML's configuration has no effect: BentoML has no such setting"],
        ),
        (
            {"tracing": {"exporter_type": "jaeger"}},
            [
                "services.tracing of BentoML's configuration has no effect: traces go by OTLP, and exporter_type is "
                "not otlp"
            ],
        ),
        (
            {"tracing": {"exporter_type": "otlp"}},
            [
                "services.tracing of BentoML's configuration has no sample_rate, so that only requests of traced "
                "callers have traces"
            ],
        ),
    ],
)
def test_remarks(services: dict[str, Any], remarks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert remark(read(services, monkeypatch)) == remarks


def test_a_variable_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read({"tracing": {"exporter_type": "otlp", "sample_rate": 0.1}}, monkeypatch)
    assert remark(settings, environment={"OTEL_TRACES_EXPORTER": "none"}) == [
        "services.tracing of BentoML's configuration does not set OTEL_TRACES_EXPORTER, which the environment sets"
    ]
