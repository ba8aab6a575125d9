"""The settings that BentoML has for a service, and what becomes of each here.

Requests pass BentoML's middleware by, so that its settings would have no effect. They become arguments, or
OpenTelemetry's variables, or a line at the start says what to do instead (`operator_settings.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Effect(Enum):
    """What reads a setting: BentoML or BentoCloud; this server, as an argument, a property of CORS or a variable."""

    BENTOML = "BentoML"
    ARGUMENT = "argument"
    CORS = "cors"
    VARIABLE = "variable"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class SettingEffect:
    """What becomes of a setting.

    Attributes:
        text: what the setting sets: something of BentoML's, an argument, a property of CORS or a variable; without an
            effect, why that is, or what to do instead.
    """

    effect: Effect
    text: str


def _by_bentoml(text: str) -> SettingEffect:
    return SettingEffect(Effect.BENTOML, text)


def _as_argument(name: str) -> SettingEffect:
    return SettingEffect(Effect.ARGUMENT, name)


def _as_cors(name: str) -> SettingEffect:
    return SettingEffect(Effect.CORS, name)


def _as_variable(name: str) -> SettingEffect:
    return SettingEffect(Effect.VARIABLE, name)


def _without_effect(text: str) -> SettingEffect:
    return SettingEffect(Effect.NONE, text)


_CLOUD = _by_bentoml("BentoCloud")
_RESOURCES = _by_bentoml("the GPUs of workers, and BentoCloud; --gpu and --gpu_type request GPUs")
_PROXIES = _by_bentoml("the proxies of services that depend on this one")
_BATCHES = _without_effect("the engine makes batches of what waits; --max_batch_tokens bounds them")
_RUNNERS = _without_effect("the service has no runners of BentoML's")
_COMMANDS = _without_effect("it is for services that run a command")
_METRICS = _without_effect("/metrics has this server's own metrics")
_ACCESS = _without_effect("--access_log has fields of its own")
_GRPC = _without_effect("gRPC has arguments of its own: --enable_grpc, --grpc_port")
_GRPC_SIZE = _without_effect("set --grpc_max_receive_message_length and --grpc_max_send_message_length")
_HTTP_ONLY = _by_bentoml("TLS of HTTP, until a certificate is renewed; not gRPC's")
_MONITORING = _without_effect("the service records no data for bentoml.monitor; see --access_log and --log_inputs")
_OTHER_TRACES = _without_effect("traces go by OTLP: set tracing.otlp, or OpenTelemetry's variables")

# By path in the service's configuration. A test compares the paths with BentoML's schema.
SETTINGS: Mapping[str, SettingEffect] = {
    "name": _CLOUD,
    "workers": _by_bentoml("the workers, also where --workers is set"),
    "resources.cpu": _RESOURCES,
    "resources.memory": _RESOURCES,
    "resources.gpu": _RESOURCES,
    "resources.gpu_type": _RESOURCES,
    "resources.tpu_type": _RESOURCES,
    "extra_ports": _CLOUD,
    "backlog": _by_bentoml("the connections that wait for the HTTP port"),
    "replicate_process": _COMMANDS,
    "threads": _without_effect("the methods of the service run on the event loop"),
    "batching.enabled": _BATCHES,
    "batching.max_batch_size": _BATCHES,
    "batching.max_latency_ms": _BATCHES,
    "traffic.timeout": _without_effect(
        "this server sets no time limit for requests, so set one in the reverse proxy; the proxies of services that "
        "depend on this one obey it"
    ),
    "traffic.max_concurrency": _as_argument("max_concurrent_requests"),
    "traffic.concurrency": _CLOUD,
    "traffic.external_queue": _CLOUD,
    "runner_connection.max_requests": _PROXIES,
    "runner_connection.max_age": _PROXIES,
    "max_runner_connections": _RUNNERS,
    "runner_probe.enabled": _RUNNERS,
    "runner_probe.timeout": _RUNNERS,
    "runner_probe.period": _RUNNERS,
    "endpoints.livez": _by_bentoml("BentoCloud's probes; the paths must be this server's"),
    "endpoints.readyz": _by_bentoml("BentoCloud's probes and proxies; the paths must be this server's"),
    "metrics.enabled": _METRICS,
    "metrics.namespace": _METRICS,
    "metrics.duration.buckets": _METRICS,
    "metrics.duration.min": _METRICS,
    "metrics.duration.max": _METRICS,
    "metrics.duration.factor": _METRICS,
    "logging.access.enabled": _as_argument("access_log"),
    "logging.access.request_content_length": _ACCESS,
    "logging.access.request_content_type": _ACCESS,
    "logging.access.response_content_length": _ACCESS,
    "logging.access.response_content_type": _ACCESS,
    "logging.access.skip_paths": _without_effect(
        "--access_log leaves out probes and /metrics unless --log_level=debug"
    ),
    "logging.access.format.trace_id": _ACCESS,
    "logging.access.format.span_id": _ACCESS,
    "http.host": _by_bentoml("the address of HTTP"),
    "http.port": _by_bentoml("the port of HTTP"),
    "http.proxy_port": _COMMANDS,
    "http.response.trace_id": _without_effect(
        "answers have the request's X-Request-Id, and traces begin at traceparent"
    ),
    "http.cors.enabled": _as_cors("enabled"),
    "http.cors.access_control_allow_origins": _as_argument("allowed_origins"),
    "http.cors.access_control_allow_methods": _as_argument("allowed_methods"),
    "http.cors.access_control_allow_headers": _as_argument("allowed_headers"),
    "http.cors.access_control_allow_credentials": _as_argument("allow_credentials"),
    "http.cors.access_control_allow_origin_regex": _as_cors("origin_pattern"),
    "http.cors.access_control_expose_headers": _as_cors("exposed"),
    "http.cors.access_control_max_age": _as_cors("max_age"),
    "ssl.enabled": _by_bentoml("whether the others of `ssl` are read"),
    "ssl.certfile": _as_argument("ssl_certfile"),
    "ssl.keyfile": _as_argument("ssl_keyfile"),
    "ssl.ca_certs": _as_argument("ssl_ca_certs"),
    "ssl.keyfile_password": _without_effect("the key must have no password"),
    "ssl.version": _HTTP_ONLY,
    "ssl.cert_reqs": _without_effect("--ssl_ca_certs makes certificates of clients necessary"),
    "ssl.ciphers": _HTTP_ONLY,
    "grpc.host": _GRPC,
    "grpc.port": _GRPC,
    "grpc.metrics.host": _GRPC,
    "grpc.metrics.port": _GRPC,
    "grpc.reflection.enabled": _without_effect("gRPC has reflection always"),
    "grpc.channelz.enabled": _GRPC,
    "grpc.max_concurrent_streams": _without_effect("set --max_streams"),
    "grpc.maximum_concurrent_rpcs": _without_effect("set --max_concurrent_requests"),
    "grpc.max_message_length": _GRPC_SIZE,
    "monitoring.enabled": _MONITORING,
    "monitoring.type": _MONITORING,
    "monitoring.options": _MONITORING,
    "tracing.exporter_type": _as_variable("OTEL_TRACES_EXPORTER"),
    "tracing.sample_rate": _as_variable("OTEL_TRACES_SAMPLER_ARG"),
    "tracing.timeout": _as_variable("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
    "tracing.max_tag_value_length": _as_variable("OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT"),
    "tracing.excluded_urls": _as_variable("OTEL_PYTHON_EXCLUDED_URLS"),
    "tracing.otlp.protocol": _as_variable("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"),
    "tracing.otlp.endpoint": _as_variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"),
    "tracing.otlp.compression": _as_variable("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION"),
    "tracing.otlp.http.headers": _as_variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
    "tracing.otlp.http.certificate_file": _as_variable("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE"),
    "tracing.otlp.grpc.headers": _as_variable("OTEL_EXPORTER_OTLP_TRACES_HEADERS"),
    "tracing.otlp.grpc.insecure": _as_variable("OTEL_EXPORTER_OTLP_TRACES_INSECURE"),
    "tracing.zipkin.endpoint": _OTHER_TRACES,
    "tracing.zipkin.local_node_ipv4": _OTHER_TRACES,
    "tracing.zipkin.local_node_ipv6": _OTHER_TRACES,
    "tracing.zipkin.local_node_port": _OTHER_TRACES,
    "tracing.jaeger.protocol": _OTHER_TRACES,
    "tracing.jaeger.collector_endpoint": _OTHER_TRACES,
    "tracing.jaeger.thrift.agent_host_name": _OTHER_TRACES,
    "tracing.jaeger.thrift.agent_port": _OTHER_TRACES,
    "tracing.jaeger.thrift.udp_split_oversized_batches": _OTHER_TRACES,
    "tracing.jaeger.grpc.insecure": _OTHER_TRACES,
}
