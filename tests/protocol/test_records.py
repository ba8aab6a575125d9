"""The records of requests to real models, over every protocol."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from protocol.http.disconnects import CLIENT, Client
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runners.core.request_record import RequestRecord, current_record
from runners.generator.decoder import Decoder
from tests.conftest import GeneratorFolder, Serve
from tests.protocol.conftest import Run
from tests.waiting import wait_until
from tests.wire import infer_request

TENSOR = {"name": "input-0", "shape": [2], "datatype": "BYTES", "data": ["good", "bad film"]}
ANSWERED = infer_request("good", "bad film")
REFUSED = infer_request("good", "bad film", model_name="secret")
PHASES = ("started", "queued", "computing", "computed", "rendering", "ended")
INFER = "/inference.GRPCInferenceService/ModelInfer"
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"


def last(ended: list[RequestRecord], count: int = 1) -> RequestRecord:
    """The last record, once there are so many; an answer may come before its request has ended."""
    wait_until(lambda: len(ended) >= count)
    assert len(ended) == count
    return ended[-1]


def describe(record: RequestRecord) -> tuple[str, str, str, str, str | None]:
    return record.protocol, record.route, record.model_name, record.status, record.refusal


V1, V2 = "/v1/models/model:predict", "/v2/models/model/infer"
V1_ROUTE, V2_ROUTE = "/v1/models/{name}:predict", "/v2/models/{name}/infer"
TEXTS = {"instances": ["good", "bad film"]}


@pytest.mark.parametrize(
    ("kind", "path", "body", "protocol", "route"),
    [
        ("sequence_classification", V1, TEXTS, "kserve_v1", V1_ROUTE),
        ("sequence_classification", V2, {"inputs": [TENSOR]}, "open_inference", V2_ROUTE),
        ("sequence_classification", "/predict", {"inputs": [["good"], ["bad film"]]}, "tei", "/predict"),
        ("sequence_classification", "/", {"inputs": ["good", "bad film"]}, "huggingface", "/"),
        ("sequence_classification", "/models/model", {"inputs": ["good", "bad film"]}, "huggingface", "/models/{name}"),
        ("text_embedding", "/embed", {"inputs": ["good", "bad film"]}, "tei", "/embed"),
        ("text_embedding", "/v1/embeddings", {"input": ["good", "bad film"]}, "openai", "/v1/embeddings"),
    ],
)
def test_an_answered_request_has_all_phases(
    run: Run, ended: list[RequestRecord], kind: str, path: str, body: Any, protocol: str, route: str
) -> None:
    answer = run(kind).client.post(path, json=body, headers={"x-request-id": "mine"})
    record = last(ended)
    assert answer.status_code == 200
    assert describe(record) == (protocol, route, "model", "200", None)
    moments = [getattr(record, name) for name in PHASES]
    assert moments == sorted(moments)
    assert moments[0] > 0
    assert (record.texts, record.tokens > 4, record.request_id, record.cancelled) == (2, True, "mine", False)
    assert current_record.get() is None


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", V1, b"{", ("kserve_v1", V1_ROUTE, "model", "400", "input")),
        ("POST", V1, b'{"instances": []}', ("kserve_v1", V1_ROUTE, "model", "400", "input")),
        ("POST", "/v1/models/secret:predict", b"{}", ("kserve_v1", V1_ROUTE, "", "404", "not_found")),
        ("GET", V1, None, ("kserve_v1", V1_ROUTE, "", "405", "method")),
        ("GET", "/secret/path", None, ("server", "unknown", "", "404", "not_found")),
        ("OPTIONS", V1, None, ("kserve_v1", V1_ROUTE, "", "204", None)),
        ("GET", "/metrics", None, ("server", "/metrics", "", "200", None)),
        ("GET", "/v2/health/ready", None, ("server", "/v2/health/ready", "", "200", None)),
        ("POST", "/v1/completions", b'{"prompt": "a"}', ("openai", "/v1/completions", "model", "400", "input")),
    ],
)
def test_records_of_other_answers(
    run: Run, ended: list[RequestRecord], method: str, path: str, body: bytes | None, expected: Any
) -> None:
    answer = run("sequence_classification").client.request(
        method, path, content=body, headers={"content-type": "application/json"}
    )
    record = last(ended)
    assert describe(record) == expected
    assert record.status == str(answer.status_code)


def test_keys_and_limits(serve: Serve, run: Run, ended: list[RequestRecord]) -> None:
    folder = run("sequence_classification").folder
    served = serve(model_dir=folder, api_key="key", max_client_batch_size=1)
    assert served.client.post(V1, json=TEXTS).status_code == 401
    assert describe(last(ended)) == ("server", "unknown", "", "401", "unauthorized")
    served.client.post(V1, json=TEXTS, headers={"authorization": "Bearer key"})
    assert describe(last(ended, 2)) == ("kserve_v1", V1_ROUTE, "model", "413", "limit")


def test_calls_and_messages_of_streams(run: Run, ended: list[RequestRecord]) -> None:
    stub = GRPCInferenceServiceStub(run("sequence_classification").channel)
    stub.ModelInfer(ANSWERED, metadata=[("x-request-id", "mine")])
    record = last(ended)
    assert describe(record) == ("grpc", INFER, "model", "OK", None)
    moments = [getattr(record, name) for name in PHASES]
    assert moments == sorted(moments)
    assert (record.texts, record.request_id) == (2, "mine")

    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(REFUSED)
    assert describe(last(ended, 2)) == ("grpc", INFER, "", "NOT_FOUND", "not_found")

    answers = list(stub.ModelStreamInfer(iter([ANSWERED, REFUSED])))
    assert len(answers) == 2
    wait_until(lambda: len(ended) == 4)
    assert {describe(record) for record in ended[2:]} == {
        ("grpc", STREAM, "model", "OK", None),
        ("grpc", STREAM, "", "NOT_FOUND", "not_found"),
    }


def test_unknown_calls_and_refused_ones(run: Run, ended: list[RequestRecord]) -> None:
    served = run("sequence_classification", api_key="key")
    for method in ("/secret/Method", INFER):
        with pytest.raises(grpc.RpcError):
            served.channel.unary_unary(method)(b"")
    wait_until(lambda: len(ended) == 2)
    assert [describe(record) for record in ended] == [
        ("grpc", "unknown", "", "UNAUTHENTICATED", "unauthorized"),
        ("grpc", INFER, "", "UNAUTHENTICATED", "unauthorized"),
    ]
    ended.clear()
    with pytest.raises(grpc.RpcError):
        run("sequence_classification").channel.unary_unary("/secret/Method")(b"")
    assert describe(last(ended)) == ("grpc", "unknown", "", "UNIMPLEMENTED", "not_implemented")


@pytest.mark.parametrize("stream", [False, True])
def test_generation_counts_tokens(
    serve: Serve, generator_folder: GeneratorFolder, ended: list[RequestRecord], stream: bool
) -> None:
    served = serve(model_dir=str(generator_folder("gpt2")), task="text_generation", backend="huggingface")
    ended.clear()
    body = {"prompt": ["one", "two"], "max_tokens": 5, "ignore_eos": True, "stream": stream, "n": 2}
    assert served.client.post("/v1/completions", json=body).status_code == 200
    record = last(ended)
    assert describe(record) == ("openai", "/v1/completions", "model", "200", None)
    assert (record.texts, record.generation_tokens, record.cancelled) == (2, 20, False)
    assert record.prompt_tokens >= 2
    assert 0 < record.started < record.queued < record.computing < record.first_token < record.computed < record.ended
    assert bool(record.rendering) is not stream


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "one", "stream": True}),
        ("/v2/models/model/generate_stream", {"text_input": "one"}),
        ("/", {"inputs": "one", "stream": True}),
    ],
)
def test_a_stream_that_fails_keeps_its_status(
    serve: Serve,
    generator_folder: GeneratorFolder,
    ended: list[RequestRecord],
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    body: dict[str, Any],
) -> None:
    """The reason tells of it, which metrics, traces and the access log have."""

    def faulty_step(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    served = serve(model_dir=str(generator_folder("gpt2")), task="text_generation", backend="huggingface")
    ended.clear()
    monkeypatch.setattr(Decoder, "step", faulty_step)
    answer = served.client.post(path, json=body)
    assert (answer.status_code, "this output has failed" in answer.text) == (200, True)
    record = last(ended)
    assert (record.status, record.refusal, record.cancelled) == ("200", "generation_failed", False)


@pytest.mark.parametrize(("refused", "expected"), [(0, ("499", None, True)), (408, ("408", "timeout", False))])
async def test_a_client_that_leaves(
    run: Run, ended: list[RequestRecord], refused: int, expected: tuple[str, str | None, bool]
) -> None:
    """It left by itself, or the connection has answered and closed."""
    client = Client()

    async def receive() -> Any:
        client.refused = refused
        client.leave()
        await asyncio.sleep(0)
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        pass

    head = {"type": "http", "method": "POST", "path": V1, "query_string": b"", "headers": [(b"content-length", b"9")]}
    await run("sequence_classification").client.app({**head, CLIENT: client}, receive, send)
    record = last(ended)
    assert (record.status, record.refusal, record.cancelled) == expected
    assert record.route == V1_ROUTE
