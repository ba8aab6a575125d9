"""The spans that records, batches and calls become, as a collector gets them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from time import perf_counter
from typing import Any

import pytest

from runners.core.generation import Sampling
from runners.core.probe_paths import HEALTH_METHODS, PROBED_PATHS
from runners.core.request_record import RequestRecord, begin_record, current_record, end_record
from runners.core.tracing import Batch, Target, engine_headers, trace_batch, trace_call, trace_stream
from runners.hosting.tracing.process import start_tracing
from runners.hosting.tracing.tracer import MOST_LINKS
from tests.collector import Collector, Span

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
PREDICT = "/v1/models/{name}:predict"
Start = Callable[..., None]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def start(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Trace with the collector and further variables; the spans of a test's own traces come to a collector of all."""
    stops: list[Callable[[], None]] = []
    collector.spans.clear()

    def begin(**variables: str) -> None:
        for name, value in {**collector.environment(), **variables}.items():
            monkeypatch.setenv(name, value)
        stops.append(start_tracing(os.environ))

    yield begin
    for stop in stops:
        stop()


def request(headers: dict[str, str] | None = None, route: str = PREDICT, **fields: Any) -> RequestRecord:
    """A request that begins; it has passed all its phases."""
    record = begin_record("kserve_v1", route, "POST", (headers or {}).get)
    moment = record.started
    for name in ("queued", "computing", "computed", "rendering"):
        moment += 1e-6
        setattr(record, name, moment)
    given = {
        "path": "/v1/models/m:predict",
        "scheme": "http",
        "status": "200",
        "model_name": "m",
        "texts": 2,
        "tokens": 9,
    }
    record.locate(fields.pop("protocol", "kserve_v1"), route)
    for name, value in {**given, **fields}.items():
        setattr(record, name, value)
    return record


def finish(record: RequestRecord, collector: Collector) -> tuple[Span, list[Span]]:
    """End a request.

    Returns:
        Its span, and those of its phases.
    """
    current_record.set(record)
    end_record(record)
    name = f"{record.method} {record.route}" if record.protocol != "grpc" else record.route[1:]
    [span] = collector.wait_for(name, record.trace_id)
    return span, sorted(
        (each for each in collector.spans if each.parent_id == span.span_id), key=lambda each: each.start
    )


def test_a_request_and_its_phases(start: Start, collector: Collector) -> None:
    start(OTEL_SERVICE_NAME="ours", OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test")
    headers = {"traceparent": SAMPLED, "tracestate": "vendor=1", "user-agent": "curl/8", "host": "example.org:8080"}
    record = request(headers)
    assert (record.trace_id, len(record.span_id)) == (TRACE, 16)
    span, phases = finish(record, collector)
    assert (span.kind, span.trace_id, span.parent_id, span.span_id) == ("server", TRACE, PARENT, record.span_id)
    assert span.status == "unset"
    assert span.attributes == {
        "http.request.method": "POST",
        "url.path": "/v1/models/m:predict",
        "url.scheme": "http",
        "http.route": PREDICT,
        "http.response.status_code": 200,
        "user_agent.original": "curl/8",
        "server.address": "example.org",
        "server.port": 8080,
        "runtime.model_name": "m",
        "runtime.texts": 2,
    }
    assert [phase.name for phase in phases] == ["read", "queue", "compute", "render"]
    assert {(phase.kind, phase.trace_id) for phase in phases} == {("internal", TRACE)}
    assert span.start == phases[0].start
    assert phases[-1].end == span.end
    assert [after.start - before.end for before, after in pairwise(phases)] == [0, 0, 1000]
    assert [round(phase.end - phase.start, -3) for phase in phases[:3]] == [1000] * 3
    resource = span.resource
    assert (resource["service.name"], resource["deployment.environment"]) == ("ours", "test")
    assert (resource["process.pid"], bool(resource["service.instance.id"])) == (os.getpid(), True)


@pytest.mark.parametrize(
    ("fields", "expected", "status"),
    [
        ({"status": "500", "refusal": "internal"}, {"error.type": "500", "runtime.refusal": "internal"}, "error"),
        (
            {"status": "200", "refusal": "generation_failed"},
            {"error.type": "generation_failed", "http.response.status_code": 200}, "error",
        ),
        ({"status": "400", "refusal": "input"}, {"error.type": None, "runtime.refusal": "input"}, "unset"),
        ({"status": "499", "cancelled": True}, {"runtime.cancelled": True, "http.response.status_code": 499}, "unset"),
        ({"method": "BREW"}, {"http.request.method": "_OTHER"}, "unset"),
        ({"path": "/" + "x" * 1000}, {"url.path": "/" + "x" * 255}, "unset"),
        (
            {"route": "/openai/v1/embeddings"},
            {"gen_ai.operation.name": "embeddings", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 9, "gen_ai.usage.output_tokens": None},
            "unset",
        ),
        (
            {
                "route": "/v1/chat/completions", "prompt_tokens": 5, "generation_tokens": 3, "tokens": 0,
                "finish_reasons": ("length",), "sampling": Sampling(max_tokens=3, temperature=0.5, stop=("secret",)),
            },
            {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "huggingface-runtime",
                "gen_ai.request.model": "m", "gen_ai.response.model": "m", "gen_ai.usage.input_tokens": 5,
                "gen_ai.usage.output_tokens": 3, "gen_ai.response.finish_reasons": ["length"],
                "gen_ai.request.max_tokens": 3, "gen_ai.request.temperature": 0.5, "gen_ai.request.top_p": None,
            },
            "unset",
        ),
        ({"prompt_tokens": 5}, {"gen_ai.operation.name": "text_completion"}, "unset"),
        (
            {"protocol": "grpc", "route": "/inference.GRPCInferenceService/ModelInfer", "status": "OK"},
            {
                "rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer",
                "rpc.service": "inference.GRPCInferenceService", "rpc.response.status_code": "OK",
                "rpc.grpc.status_code": 0, "error.type": None, "url.path": None,
            },
            "unset",
        ),
        (
            {"protocol": "grpc", "route": "/a/B", "status": "UNAVAILABLE"},
            {"rpc.grpc.status_code": 14, "error.type": "UNAVAILABLE"}, "error",
        ),
        ({"protocol": "grpc", "route": "/a/B", "status": "INVALID_ARGUMENT"}, {"error.type": None}, "unset"),
    ],
)  # fmt: skip
def test_attributes(
    start: Start, collector: Collector, fields: dict[str, Any], expected: dict[str, Any], status: str
) -> None:
    start()
    record = request(**fields)
    if record.method == "BREW":
        # Few names, whatever clients send.
        end_record(record)
        [span] = collector.wait_for(f"HTTP {PREDICT}", record.trace_id)
    else:
        span, _ = finish(record, collector)
    assert {name: span.attributes.get(name) for name in expected} == expected
    assert span.status == status
    assert "secret" not in str(span)


def test_the_first_token_is_an_event(start: Start, collector: Collector) -> None:
    start()
    record = request()
    record.first_token = record.computing
    _, phases = finish(record, collector)
    assert [phase.events for phase in phases if phase.name == "compute"] == [["first token"]]


@pytest.mark.parametrize(
    ("variables", "headers", "exported"),
    [
        ({}, {}, True),
        ({}, {"traceparent": "nonsense"}, True),
        ({}, {"traceparent": UNSAMPLED}, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {}, False),
        ({"OTEL_TRACES_SAMPLER": "parentbased_always_off"}, {"traceparent": SAMPLED}, True),
        ({"OTEL_TRACES_SAMPLER": "always_on"}, {"traceparent": UNSAMPLED}, True),
        ({"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0"}, {}, False),
    ],
)
def test_sampling(
    start: Start, collector: Collector, variables: dict[str, str], headers: dict[str, str], exported: bool
) -> None:
    start(**variables)
    record = request(headers)
    # Logs show the ids of all.
    assert len(record.trace_id) == 32
    end_record(record)
    # Spans are exported in order, and each sampler here honours this one.
    other = request({"traceparent": SAMPLED.replace(TRACE, "1" * 32)})
    finish(other, collector)
    assert bool(collector.find(f"POST {PREDICT}", record.trace_id)) is exported


def test_probes_are_not_traced(start: Start, collector: Collector) -> None:
    start()
    for route in PROBED_PATHS:
        protocol, method, path = ("grpc", "gRPC", "") if route in HEALTH_METHODS else ("server", "GET", route)
        end_record(request(protocol=protocol, method=method, route=route, path=path))
    # A call of a model has the path of a probe.
    end_record(request(route="/", path="/"))
    finish(request(), collector)
    spans = {span.name for span in collector.spans}
    assert spans == {f"POST {PREDICT}", "POST /", "read", "queue", "compute", "render"}


def test_what_is_not_traced_can_be_chosen(start: Start, collector: Collector) -> None:
    start(OTEL_PYTHON_EXCLUDED_URLS="/v1/.*:predict, ^/other")
    end_record(request())
    finish(request(route="/metrics", path="/metrics"), collector)
    assert "POST /metrics" in {span.name for span in collector.spans}
    assert f"POST {PREDICT}" not in {span.name for span in collector.spans}


def test_a_batch_and_its_requests_are_linked(start: Start, collector: Collector) -> None:
    start()
    records = [request({"traceparent": UNSAMPLED}), request(), request()]
    with trace_batch(Batch("m", [*records, records[1]], 4, 40)):
        pass
    unsampled, first, second = records
    (first_span, first_phases), (second_span, second_phases) = (finish(each, collector) for each in (first, second))
    end_record(unsampled)
    [batch] = collector.wait_for("batch")
    assert (batch.parent_id, batch.trace_id) == (first_span.span_id, first.trace_id)
    assert batch.links == [first_span.key, second_span.key]
    assert batch.attributes == {
        "runtime.model_name": "m", "runtime.texts": 4, "runtime.tokens": 40, "runtime.requests": 3
    }  # fmt: skip
    for phases in (first_phases, second_phases):
        [compute] = [phase for phase in phases if phase.name == "compute"]
        assert compute.links == [batch.key]


def test_links_are_bounded(start: Start, collector: Collector) -> None:
    start()
    records = [request() for _ in range(MOST_LINKS + 5)]
    for _ in range(2):
        with trace_batch(Batch("m", records, len(records), 1)):
            pass
    for _ in range(MOST_LINKS):
        with trace_batch(Batch("m", records[:1], 1, 1)):
            pass
    batches = collector.wait_for("batch", count=2 + MOST_LINKS)
    assert {len(batch.links) for batch in batches} == {1, MOST_LINKS}
    _, phases = finish(records[0], collector)
    [compute] = [phase for phase in phases if phase.name == "compute"]
    assert len(compute.links) == MOST_LINKS


def test_a_batch_that_fails(start: Start, collector: Collector) -> None:
    start()
    with pytest.raises(KeyError), trace_batch(Batch("m", [request()], 1, 1)):
        raise KeyError("secret")
    [batch] = collector.wait_for("batch")
    assert (batch.status, batch.attributes["error.type"]) == ("error", "KeyError")
    assert "secret" not in str(batch)


@pytest.mark.parametrize(
    ("target", "status", "name", "expected"),
    [
        (
            Target("POST", "/v2/models/m/infer", "predictor:8080", "http"), 200, "POST /v2/models/m/infer",
            {
                "http.request.method": "POST", "url.full": "http://predictor:8080/v2/models/m/infer",
                "server.address": "predictor", "server.port": 8080, "http.response.status_code": 200,
            },
        ),
        (
            Target("GET", "/v2", "predictor", "https"), 503, "GET /v2",
            {
                "http.request.method": "GET", "url.full": "https://predictor/v2", "server.address": "predictor",
                "http.response.status_code": 503, "error.type": "503",
            },
        ),
        (
            Target("", "/a.B/C", "[::1]:81"), "NOT_FOUND", "a.B/C",
            {
                "rpc.system.name": "grpc", "rpc.system": "grpc", "rpc.method": "a.B/C", "rpc.service": "a.B",
                "server.address": "::1", "server.port": 81, "rpc.response.status_code": "NOT_FOUND",
                "rpc.grpc.status_code": 5, "error.type": "NOT_FOUND",
            },
        ),
    ],
)  # fmt: skip
def test_a_call_of_a_batch(
    start: Start, collector: Collector, target: Target, status: int | str, name: str, expected: dict[str, Any]
) -> None:
    start()
    record = request({"traceparent": SAMPLED, "tracestate": "vendor=1", "baggage": "user=7"})
    with trace_batch(Batch("m", [record], 1, 1)), trace_call(target) as call:
        call.note_status(status)
    [span], [batch] = collector.wait_for(name), collector.wait_for("batch")
    assert (span.kind, span.parent_id, span.trace_id) == ("client", batch.span_id, TRACE)
    assert span.attributes == expected
    assert span.status == ("error" if "error.type" in expected else "unset")
    assert call.headers == {
        "traceparent": f"00-{TRACE}-{span.span_id}-01", "tracestate": "vendor=1", "baggage": "user=7"
    }  # fmt: skip


def test_a_call_without_an_answer(start: Start, collector: Collector) -> None:
    start()
    batch, target = Batch("m", [request()], 1, 1), Target("GET", "/v2", "predictor", "http")
    with pytest.raises(OSError, match="gone"), trace_batch(batch), trace_call(target):
        raise OSError("gone")
    [span] = collector.wait_for("GET /v2")
    assert (span.status, span.attributes["error.type"]) == ("error", "OSError")


def test_an_unsampled_trace_goes_on_unsampled(start: Start, collector: Collector) -> None:
    start()
    record = request({"traceparent": UNSAMPLED})
    with trace_batch(Batch("m", [record], 1, 1)), trace_call(Target("GET", "/v2", "predictor", "http")) as call:
        pass
    assert call.headers["traceparent"].startswith(f"00-{TRACE}-")
    assert call.headers["traceparent"].endswith("-00")
    assert engine_headers(record)["traceparent"] == f"00-{TRACE}-{record.span_id}-00"


def test_calls_outside_of_batches_have_no_spans(start: Start) -> None:
    """A predictor's readiness is asked for each second."""
    start()
    with trace_call(Target("GET", "/v2", "predictor", "http")) as call:
        assert call.headers == {}
    with trace_batch(Batch("m", [], 1, 1)), trace_call(Target("GET", "/v2", "predictor", "http")) as call:
        assert call.headers == {}


def test_messages_are_below_their_stream(start: Start, collector: Collector) -> None:
    start()
    route = "/inference.GRPCInferenceService/ModelStreamInfer"
    stream = RequestRecord("grpc", route, "gRPC")
    headers = {"traceparent": SAMPLED}
    with trace_stream(stream, headers.get):
        for status in ("OK", "INVALID_ARGUMENT"):
            end_record(request(headers, route, protocol="grpc", status=status))
        stream.status = "OK"
    spans = collector.wait_for(route[1:], count=3)
    [whole] = [span for span in spans if span.kind == "server"]
    assert (whole.parent_id, whole.attributes["rpc.response.status_code"]) == (PARENT, "OK")
    messages = [span for span in spans if span.kind == "internal"]
    assert [span.parent_id for span in messages] == [whole.span_id] * 2
    assert [span.attributes["rpc.response.status_code"] for span in messages] == ["OK", "INVALID_ARGUMENT"]


def test_without_settings_nothing_is_traced() -> None:
    start_tracing({})()
    record = request({"traceparent": SAMPLED})
    with trace_batch(Batch("m", [record], 1, 1)), trace_call(Target("GET", "/v2", "predictor", "http")) as call:
        call.note_status(200)
    end_record(record)
    assert (record.trace, record.trace_id, call.headers, engine_headers(record)) == (None, "", {}, {})


def test_a_request_costs_little(start: Start) -> None:
    """A sampled request's spans take some 0.1 ms; one that is not sampled takes a fraction of it."""
    start(OTEL_BSP_SCHEDULE_DELAY="60000")
    for headers, limit in (({"traceparent": SAMPLED}, 0.002), ({"traceparent": UNSAMPLED}, 0.0005)):
        started = perf_counter()
        for _ in range(200):
            end_record(request(headers))
        assert (perf_counter() - started) / 200 < limit
