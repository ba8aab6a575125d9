"""Black box: the spans of started servers, as a collector on loopback gets them."""

from __future__ import annotations

import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.collector import Collector, Span
from tests.conftest import GeneratorFolder, ModelFolder
from tests.faults import FAULT, break_encoder
from tests.servers import BENTOML, ServerProcess, free_port
from tests.waiting import wait_until
from tests.wire import infer_request

pytestmark = pytest.mark.slow

SECRET = "Maria"
BODY = {"instances": [f"{SECRET} flew to Rome", "Serve Hugging Face models"]}
ANSWERED = infer_request(BODY["instances"][0], id="1")
REFUSED = infer_request(BODY["instances"][0], id="1", model_name="nope")
PREDICT, SPAN = "/v1/models/model:predict", "POST /v1/models/{name}:predict"
SERVICE = "inference.GRPCInferenceService"
Start = Callable[..., ServerProcess]
_traces = itertools.count(1)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """`start(environment, "model_dir=...")`: a server, which is ready."""
    servers: list[ServerProcess] = []

    def start(environment: dict[str, str], *arguments: str, ready: bool = True) -> ServerProcess:
        words = [f"--arg={each}" for each in arguments]
        home = tmp_path_factory.mktemp("home")
        servers.append(ServerProcess([*BENTOML, "serve", ".", "--port={port}", *words], home, environment))
        if ready:
            servers[-1].wait_until("/v2/health/ready", 200, 300)
        return servers[-1]

    yield start
    for server in servers:
        server.terminate()


@pytest.fixture(scope="module")
def encoder(
    collector: Collector, start: Start, model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> ServerProcess:
    """A server over gRPC's OTLP, with some attributes of its own, and with access lines."""
    environment = collector.environment() | {"OTEL_SERVICE_NAME": "front"} | break_encoder(tmp_path_factory.mktemp("x"))
    folder = model_folder("bert", "sequence_classification")
    return start(environment, f"model_dir={folder}", "access_log=true", "log_format=json")


def new_trace(sampled: bool = True) -> tuple[str, dict[str, str]]:
    """A caller's trace, and the headers that continue it."""
    trace_id = f"{next(_traces):032x}"
    return trace_id, {"traceparent": f"00-{trace_id}-00000000000000aa-0{int(sampled)}", "tracestate": "vendor=1"}


def predict(server: ServerProcess, headers: dict[str, str], body: Any = BODY) -> httpx.Response:
    return httpx.post(server.url + PREDICT, json=body, headers=headers, timeout=60)


def children(collector: Collector, parent: Span, count: int) -> dict[str, Span]:
    """The spans below one, by name."""
    wait_until(lambda: len([span for span in list(collector.spans) if span.parent_id == parent.span_id]) >= count)
    return {span.name: span for span in list(collector.spans) if span.parent_id == parent.span_id}


def test_a_request_over_rest(encoder: ServerProcess, collector: Collector) -> None:
    trace_id, headers = new_trace()
    assert predict(encoder, headers).status_code == 200
    [span] = collector.wait_for(SPAN, trace_id)
    assert (span.kind, span.parent_id, span.status) == ("server", "00000000000000aa", "unset")
    attributes = span.attributes
    assert re.fullmatch(r"python-httpx/.*", attributes.pop("user_agent.original"))
    assert attributes == {
        "http.request.method": "POST", "http.route": "/v1/models/{name}:predict", "http.response.status_code": 200,
        "url.path": PREDICT, "url.scheme": "http", "server.address": "127.0.0.1", "server.port": encoder.port,
        "runtime.model_name": "model", "runtime.texts": 2,
    }  # fmt: skip
    found = children(collector, span, 5)
    assert {*found} == {"read", "queue", "compute", "render", "batch"}
    order = [found[name] for name in ("read", "queue", "compute", "render")]
    assert all(before.end <= after.start for before, after in itertools.pairwise(order))
    assert (order[0].start, order[-1].end) == (span.start, span.end)
    batch, compute = found["batch"], found["compute"]
    assert (batch.links, compute.links) == ([span.key], [batch.key])
    assert compute.start <= batch.start
    assert (batch.attributes["runtime.texts"], batch.attributes["runtime.requests"]) == (2, 1)
    assert span.resource["service.name"] == "front"
    assert SECRET not in str(collector.spans)


@pytest.mark.parametrize(
    ("body", "status", "attributes"),
    [
        (b"{", 400, {"runtime.refusal": "input", "error.type": None}),
        (b'{"instances": [5]}', 400, {"runtime.refusal": "input"}),
    ],
)
def test_a_refused_request(
    encoder: ServerProcess, collector: Collector, body: bytes, status: int, attributes: dict[str, Any]
) -> None:
    trace_id, headers = new_trace()
    assert httpx.post(encoder.url + PREDICT, content=body, headers=headers).status_code == status
    [span] = collector.wait_for(SPAN, trace_id)
    assert {name: span.attributes.get(name) for name in attributes} == attributes
    assert (span.attributes["http.response.status_code"], span.status) == (status, "unset")


def test_a_request_that_fails(encoder: ServerProcess, collector: Collector) -> None:
    """By a fault of the server: the error in the log belongs to the same trace."""
    trace_id, headers = new_trace()
    assert predict(encoder, headers, {"instances": [f"{SECRET} {FAULT}"]}).status_code == 500
    [span] = collector.wait_for(SPAN, trace_id)
    assert (span.status, span.attributes["error.type"]) == ("error", "500")
    assert (span.attributes["http.response.status_code"], span.attributes["runtime.refusal"]) == (500, "internal")
    assert FAULT not in str(span)
    wait_until(lambda: find_lines(encoder, trace_id, "protocol.http.errors", "runners.core.errors"))
    [line] = find_lines(encoder, trace_id, "protocol.http.errors", "runners.core.errors")
    assert (line["level"], line["span_id"]) == ("error", span.span_id)


def find_lines(server: ServerProcess, trace_id: str, *loggers: str) -> list[dict[str, Any]]:
    """The lines of the log of a trace, by their loggers."""
    lines = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("trace_id") == trace_id and line["logger"] in loggers]


def test_access_lines_name_the_span(encoder: ServerProcess, collector: Collector) -> None:
    """Of a request over HTTP, of a gRPC call, and of a message of a gRPC stream."""
    sent: dict[str, str] = {}
    trace_id, headers = new_trace()
    predict(encoder, headers)
    sent[SPAN] = trace_id
    with grpc.insecure_channel(f"127.0.0.1:{encoder.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        trace_id, headers = new_trace()
        stub.ModelInfer(ANSWERED, metadata=(*headers.items(),), timeout=60)
        sent[f"{SERVICE}/ModelInfer"] = trace_id
        trace_id, headers = new_trace()
        list(stub.ModelStreamInfer(iter([ANSWERED]), metadata=(*headers.items(),), timeout=60))
        sent[f"{SERVICE}/ModelStreamInfer"] = trace_id
    for name, trace_id in sent.items():
        count = 2 if name.endswith("ModelStreamInfer") else 1
        spans = collector.wait_for(name, trace_id, count)
        message = [span for span in spans if span.kind == "internal"] or spans
        wait_until(lambda: find_lines(encoder, trace_id, "access"), 10)  # noqa: B023
        [line] = find_lines(encoder, trace_id, "access")
        assert [line["span_id"]] == [span.span_id for span in message], name


def test_a_request_whose_client_leaves(encoder: ServerProcess, collector: Collector) -> None:
    trace_id, headers = new_trace()
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: a\r\ntraceparent: {headers['traceparent']}\r\ncontent-length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", encoder.port)) as leaving:
        leaving.sendall(head.encode() + b"{")
    [span] = collector.wait_for(SPAN, trace_id)
    assert span.attributes["runtime.cancelled"] is True
    assert (span.attributes["http.response.status_code"], span.status) == (499, "unset")


def test_unknown_paths_share_a_name(encoder: ServerProcess, collector: Collector) -> None:
    trace_id, headers = new_trace()
    assert httpx.get(f"{encoder.url}/nowhere", headers=headers).status_code == 404
    [span] = collector.wait_for("GET", trace_id)
    assert (span.attributes["url.path"], "http.route" in span.attributes) == ("/nowhere", False)


def test_an_unsampled_request_and_probes_have_no_spans(encoder: ServerProcess, collector: Collector) -> None:
    unsampled, headers = new_trace(sampled=False)
    assert predict(encoder, headers).status_code == 200
    for path in ("/v2/health/ready", "/metrics", "/livez"):
        assert httpx.get(encoder.url + path, headers=new_trace()[1]).status_code == 200
    last, headers = new_trace()
    predict(encoder, headers)
    collector.wait_for(SPAN, last)
    assert unsampled not in {span.trace_id for span in collector.spans}
    assert not [span for span in collector.spans if re.search("health|metrics|livez|favicon", span.name)]


def test_a_batch_of_several_requests(encoder: ServerProcess, collector: Collector) -> None:
    """The batch belongs to one trace, and is linked with all."""
    batches: list[Span] = []
    for _ in range(20):
        traces = [new_trace() for _ in range(32)]
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda each: predict(encoder, each[1]), traces))
        spans = [collector.wait_for(SPAN, trace_id)[0] for trace_id, _ in traces]
        keys = {span.key for span in spans}
        batches = [batch for batch in collector.find("batch") if len(keys & {*batch.links}) > 1]
        if batches:
            break
    assert batches
    for batch in batches:
        assert batch.parent_id in {span.span_id for span in spans}
        for trace_id, span_id in batch.links:
            computes = [each for each in collector.find("compute", trace_id) if each.parent_id == span_id]
            assert [batch.key in compute.links for compute in computes] == [True]


def test_a_call_over_grpc(encoder: ServerProcess, collector: Collector) -> None:
    trace_id, headers = new_trace()
    with grpc.insecure_channel(f"127.0.0.1:{encoder.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        stub.ModelInfer(ANSWERED, metadata=(*headers.items(),), timeout=60)
        with pytest.raises(grpc.RpcError, match="does not exist"):
            stub.ModelInfer(REFUSED, metadata=(*headers.items(),), timeout=60)
    span, failed = collector.wait_for(f"{SERVICE}/ModelInfer", trace_id, 2)
    assert (span.kind, span.parent_id, span.status) == ("server", "00000000000000aa", "unset")
    assert span.attributes.pop("user_agent.original").startswith("grpc-python/")
    assert span.attributes == {
        "rpc.system.name": "grpc", "rpc.system": "grpc", "rpc.method": f"{SERVICE}/ModelInfer",
        "rpc.service": SERVICE, "rpc.response.status_code": "OK", "rpc.grpc.status_code": 0,
        "runtime.model_name": "model", "runtime.texts": 1,
    }  # fmt: skip
    assert {*children(collector, span, 4)} >= {"read", "queue", "compute", "batch"}
    assert (failed.attributes["rpc.response.status_code"], failed.status) == ("NOT_FOUND", "unset")


def test_the_messages_of_a_stream(encoder: ServerProcess, collector: Collector) -> None:
    trace_id, headers = new_trace()
    name = f"{SERVICE}/ModelStreamInfer"
    requests = [ANSWERED, ANSWERED, REFUSED]
    with grpc.insecure_channel(f"127.0.0.1:{encoder.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        answers = list(stub.ModelStreamInfer(iter(requests), metadata=(*headers.items(),), timeout=60))
    assert [bool(answer.error_message) for answer in answers].count(True) == 1
    spans = collector.wait_for(name, trace_id, 4)
    [stream] = [span for span in spans if span.kind == "server"]
    assert (stream.parent_id, stream.attributes["rpc.response.status_code"]) == ("00000000000000aa", "OK")
    inner = [span for span in spans if span.kind == "internal"]
    assert {span.parent_id for span in inner} == {stream.span_id}
    assert sorted(span.attributes["rpc.response.status_code"] for span in inner) == ["NOT_FOUND", "OK", "OK"]
    answered = [span for span in inner if span.attributes["rpc.response.status_code"] == "OK"]
    assert all("compute" in children(collector, span, 4) for span in answered)


@pytest.mark.parametrize("protocol", ["v2", "grpc-v2"])
def test_a_predictors_spans_belong_to_the_same_trace(
    collector: Collector, start: Start, encoder: ServerProcess, model_folder: ModelFolder, protocol: str
) -> None:
    port = encoder.port if protocol == "v2" else encoder.grpc_port
    front = start(
        collector.environment("http/protobuf") | {"OTEL_SERVICE_NAME": "behind"},
        f"model_dir={model_folder('bert', 'sequence_classification')}",
        f"predictor_host=127.0.0.1:{port}", f"predictor_protocol={protocol}",
    )  # fmt: skip
    trace_id, headers = new_trace()
    assert predict(front, headers | {"baggage": "user=7"}).status_code == 200
    [outer] = [span for span in collector.wait_for(SPAN, trace_id) if span.resource["service.name"] == "behind"]
    batch = children(collector, outer, 5)["batch"]
    name = "POST /v2/models/model/infer" if protocol == "v2" else f"{SERVICE}/ModelInfer"
    client = children(collector, batch, 2)[name]
    status = {"http.response.status_code": 200} if protocol == "v2" else {"rpc.response.status_code": "OK"}
    assert client.kind == "client"
    assert client.attributes.items() >= {"server.address": "127.0.0.1", "server.port": port, **status}.items()
    name = "POST /v2/models/{name}/infer" if protocol == "v2" else f"{SERVICE}/ModelInfer"
    wait_until(lambda: [span for span in collector.find(name, trace_id) if span.kind == "server"])
    [inner] = [span for span in collector.find(name, trace_id) if span.kind == "server"]
    assert (inner.parent_id, inner.resource["service.name"]) == (client.span_id, "front")
    assert "compute" in children(collector, inner, 4)


def test_several_workers(collector: Collector, start: Start, model_folder: ModelFolder) -> None:
    """Each has a provider of its own, and exports its last spans when it ends."""
    # Until then nothing is exported; the queue holds all spans.
    environment = collector.environment() | {"OTEL_BSP_SCHEDULE_DELAY": "3600000"}
    folder = model_folder("bert", "sequence_classification")
    server = start(environment, f"model_dir={folder}", "workers=2")
    expected: set[str] = set()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(expected) < 100:
        trace_id, headers = new_trace()
        # The kernel chooses a worker for each connection; one may still load the model.
        if predict(server, headers).status_code == 200:
            expected.add(trace_id)
    assert not [trace_id for trace_id in expected if collector.find(SPAN, trace_id)]
    assert server.terminate() == 0
    spans = [collector.wait_for(SPAN, trace_id)[0] for trace_id in expected]
    assert len({span.resource["process.pid"] for span in spans}) == 2
    assert len({span.resource["service.instance.id"] for span in spans}) == 2


def test_a_collector_that_is_away(start: Start, model_folder: ModelFolder) -> None:
    """Requests are answered as fast, the log has one line, and the end takes no longer."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{free_port()}", "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }  # fmt: skip
    server = start(environment, f"model_dir={model_folder('bert', 'sequence_classification')}")
    wait_until(lambda: predict(server, {}) and "traces are lost" in server.output)
    times = []
    for _ in range(100):
        begun = time.perf_counter()
        assert predict(server, {}).status_code == 200
        times.append(time.perf_counter() - begun)
    time.sleep(3)
    assert sorted(times)[50] < 0.2
    begun = time.perf_counter()
    assert server.terminate() == 0
    assert time.perf_counter() - begun < 10
    assert [line for line in server.output.splitlines() if "OTLP" in line or "otlp" in line] == []
    assert len(re.findall("traces are lost, as http://127.0.0.1:", server.output)) == 1
    assert "Traceback" not in server.output


def test_a_start_without_the_exporters(start: Start, model_folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('opentelemetry.exporter'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    folder = model_folder("bert", "sequence_classification")
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "PYTHONPATH": str(tmp_path)}
    server = start(environment, f"model_dir={folder}", ready=False)
    assert server.wait_for_exit() == 1
    assert "error: OTEL_EXPORTER_OTLP_ENDPOINT asks for traces, whose exporter is not installed: pip " in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_TRACES_SAMPLER", "sometimes"), ("OTEL_PROPAGATORS", "tracecontext,b4")]
)
def test_a_wrong_setting(
    collector: Collector, start: Start, model_folder: ModelFolder, variable: str, value: str
) -> None:
    folder = model_folder("bert", "sequence_classification")
    server = start(collector.environment() | {variable: value}, f"model_dir={folder}", ready=False)
    assert server.wait_for_exit() == 1
    assert f"error: {variable} " in server.output
    assert "Traceback" not in server.output


def test_generation(collector: Collector, start: Start, generator_folder: GeneratorFolder) -> None:
    server = start(collector.environment(), f"model_dir={generator_folder('llama')}", "backend=huggingface")
    trace_id, headers = new_trace()
    body = {"model": "model", "prompt": SECRET, "max_tokens": 5, "temperature": 0, "ignore_eos": True, "n": 1}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60).json()
    [span] = collector.wait_for("POST /v1/completions", trace_id)
    attributes = {name: value for name, value in span.attributes.items() if name.startswith("gen_ai.")}
    assert 0 < attributes.pop("gen_ai.response.time_to_first_chunk") < 60
    assert attributes == {
        "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "huggingface-runtime",
        "gen_ai.request.model": "model", "gen_ai.response.model": "model", "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0, "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": 5, "gen_ai.response.finish_reasons": ["length"],
    }  # fmt: skip
    found = children(collector, span, 4)
    assert {*found} == {"read", "queue", "compute", "render"}
    assert found["compute"].events == ["first token"]
    assert SECRET not in str([each for each in collector.spans if each.trace_id == trace_id])

    # A stream of server-sent events; one that is read to its end, and one whose client leaves it.
    streamed = {**body, "stream": True}
    trace_id, headers = new_trace()
    assert httpx.post(f"{server.url}/v1/completions", json=streamed, headers=headers, timeout=60).text.endswith(
        "[DONE]\n\n"
    )
    [span] = collector.wait_for("POST /v1/completions", trace_id)
    assert (span.status, span.attributes["http.response.status_code"]) == ("unset", 200)
    assert span.attributes["gen_ai.usage.output_tokens"] == 5
    assert "runtime.cancelled" not in span.attributes
    found = children(collector, span, 3)
    assert {*found} == {"read", "queue", "compute"}
    assert found["compute"].events == ["first token"]

    trace_id, headers = new_trace()
    endless = {**streamed, "max_tokens": 50, "n": 16, "temperature": 1}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=endless, headers=headers) as answer:
        assert next(answer.iter_lines()).startswith("data: ")
    [span] = collector.wait_for("POST /v1/completions", trace_id)
    assert (span.attributes["runtime.cancelled"], span.status) == (True, "unset")
    assert span.attributes["gen_ai.usage.output_tokens"] < 50 * 16


def test_vllms_own_spans(collector: Collector, start: Start, smollm: Path) -> None:
    """Those of a request are below this server's, whichever protocol it came over."""
    pytest.importorskip("vllm")
    environment = collector.environment("http/protobuf") | {"OTEL_SERVICE_NAME": "generator"}
    words = ("model_name=model", "max_model_len=512", "log_format=json", "log_inputs=9")
    server = start(environment, f"model_dir={smollm}", *words)
    completion = {"model": "model", "prompt": SECRET, "max_tokens": 3}
    requests = {
        "POST /openai/v1/completions": ("/openai/v1/completions", completion),
        "POST /v2/models/{name}/generate": ("/v2/models/model/generate", {"text_input": SECRET, "parameters": {"max_tokens": 3}}),
    }  # fmt: skip
    for name, (path, body) in requests.items():
        trace_id, headers = new_trace()
        assert httpx.post(server.url + path, json=body, headers=headers, timeout=120).status_code == 200, name
        [outer] = [span for span in collector.wait_for(name, trace_id) if span.kind == "server"]
        [inner] = collector.wait_for("llm_request", trace_id)
        assert inner.parent_id == outer.span_id
        assert inner.attributes["gen_ai.usage.completion_tokens"] == 3
        assert inner.resource["service.name"] == "generator"
        # vLLM gets the body of OpenAI's calls as it is.
        wait_until(lambda: find_lines(server, trace_id, "runners.core.input_log"), 10)  # noqa: B023
        [line] = find_lines(server, trace_id, "runners.core.input_log")
        assert line["inputs"] == ['{"model":' if "/openai/" in path else SECRET]
        attributes = {each: value for each, value in outer.attributes.items() if each.startswith("gen_ai.")}
        assert 0 < attributes.pop("gen_ai.response.time_to_first_chunk") < 60
        sampling = {} if "openai" in path else {"gen_ai.request.max_tokens": 3}
        assert attributes == sampling | {
            "gen_ai.operation.name": "text_completion", "gen_ai.provider.name": "huggingface-runtime",
            "gen_ai.request.model": "model", "gen_ai.response.model": "model",
            "gen_ai.usage.input_tokens": inner.attributes["gen_ai.usage.prompt_tokens"],
            "gen_ai.usage.output_tokens": 3, "gen_ai.response.finish_reasons": ["length"],
        }  # fmt: skip
    assert server.terminate() == 0
