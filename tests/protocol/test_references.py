"""A fault of the server has a number, which the client's error and the log have, in each protocol."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.conftest import Dial, GeneratorFolder, ModelFolder, Serve
from tests.served import Served, ServedOverGrpc

SECRET = "a secret"
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.fixture(scope="module")
def embedder(model_folder: ModelFolder, serve: Serve, dial: Dial) -> ServedOverGrpc:
    served = serve(model_dir=model_folder("bert", "text_embedding"), task="text_embedding")
    return ServedOverGrpc(served.client, served.models, served.arguments, dial(served))


@pytest.fixture(scope="module")
def generator(generator_folder: GeneratorFolder, serve: Serve) -> Served:
    return serve(model_dir=generator_folder("gpt2"), backend="huggingface")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch, embedder: ServedOverGrpc) -> ServedOverGrpc:
    async def fail(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(type(embedder.runner), "infer", fail)
    return embedder


def find_reference(caplog: pytest.LogCaptureFixture) -> str:
    """The reference of the only error in the log, which has no message of the error."""
    [record] = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert SECRET not in record.getMessage()
    assert SECRET not in str(record.exc_info)
    reference: str = record.__dict__["reference"]
    assert re.fullmatch("[0-9a-f]{8}", reference)
    assert reference in record.getMessage()
    return reference


@pytest.mark.parametrize(
    ("path", "body", "find"),
    [
        ("/v1/models/model:predict", {"instances": ["a"]}, lambda answer: answer["error"]),
        ("/v2/models/model/infer", {"inputs": [TENSOR]}, lambda answer: answer["error"]),
        ("/openai/v1/embeddings", {"input": "a", "model": "model"}, lambda answer: answer["error"]["message"]),
        ("/embed", {"inputs": "a"}, lambda answer: answer["error"]),
    ],
)
def test_over_http(
    path: str,
    body: dict[str, Any],
    find: Callable[[Any], str],
    failing: ServedOverGrpc,
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer = failing.client.post(path, json=body)
    assert (answer.status_code, find(answer.json())) == (
        500, f"internal server error (reference {find_reference(caplog)})"
    )  # fmt: skip


def test_over_grpc(failing: ServedOverGrpc, caplog: pytest.LogCaptureFixture) -> None:
    request = messages.ModelInferRequest(
        model_name="model",
        inputs=[{"name": "text", "datatype": "BYTES", "shape": [1], "contents": {"bytes_contents": [b"a"]}}],
    )
    stub = GRPCInferenceServiceStub(failing.channel)  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.RpcError) as error:
        stub.ModelInfer(request)
    found = error.value.code(), error.value.details()
    assert found == (grpc.StatusCode.INTERNAL, f"internal server error (reference {find_reference(caplog)})")
    caplog.clear()
    [response] = stub.ModelStreamInfer(iter([request]))
    assert response.error_message == f"internal server error (reference {find_reference(caplog)})"


def test_a_message_that_cannot_be_decoded(
    embedder: ServedOverGrpc, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error before a service's own method; gRPC itself would tell its message to the client."""

    def fail(*_: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("protocol.open_inference.grpc.calls._decode_with", fail)
    stub = GRPCInferenceServiceStub(embedder.channel)  # type: ignore[no-untyped-call]
    with pytest.raises(grpc.RpcError) as error:
        stub.ServerLive(messages.ServerLiveRequest())
    assert error.value.details() == f"internal server error (reference {find_reference(caplog)})"


@pytest.mark.parametrize("streams", [False, True])
def test_an_output_of_a_generator(
    streams: bool, generator: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise RuntimeError(SECRET)

    monkeypatch.setattr("protocol.openai.completions.CompletionRequest.to_sampling", fail)
    body = {"prompt": "a", "model": "model", "max_tokens": 2, "stream": streams}
    answer = generator.client.post("/openai/v1/completions", json=body)
    assert f"internal server error (reference {find_reference(caplog)})" in answer.text
