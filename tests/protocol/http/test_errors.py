"""An error that nothing foresaw: what the client and the log get of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from runners.encoder.runner import EncoderRunner
from tests.conftest import Dial, ModelFolder, Serve
from tests.served import Served

TEXT = "a private text"
Ask = Callable[[str], str]


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, serve: Serve) -> Served:
    return serve(model_dir=model_folder("bert", "sequence_classification"))


@pytest.fixture
def ask(served: Served, dial: Dial) -> Ask:
    def send(wire: str) -> str:
        if wire == "grpc":
            request = messages.ModelInferRequest(model_name="model")
            request.inputs.add(name="input-0", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
                TEXT.encode()
            )
            with pytest.raises(grpc.RpcError) as caught:
                GRPCInferenceServiceStub(dial(served)).ModelInfer(request)  # type: ignore[no-untyped-call]
            assert caught.value.code() is grpc.StatusCode.INTERNAL
            return str(caught.value.details())
        field = "inputs" if wire == "/predict" else "instances"
        response = served.client.post(wire, json={field: TEXT if wire == "/predict" else [TEXT]})
        assert response.status_code == 500
        return response.text

    return send


@pytest.mark.parametrize("wire", ["/v1/models/model:predict", "/predict", "grpc"])
def test_its_message_is_told_to_nobody(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wire: str
) -> None:
    async def fail_on_text(_: Any, texts: Any, __: Any) -> Any:
        try:
            raise KeyError(texts[0].text)
        except KeyError as error:
            raise ValueError(f"nobody foresaw {texts[0].text}") from error

    monkeypatch.setattr(EncoderRunner, "infer", fail_on_text)
    answer = ask(wire)
    assert "internal server error" in answer
    [record] = [record for record in caplog.records if "ValueError" in record.getMessage()]
    assert f"(reference {record.__dict__['reference']})" in answer
    assert "in fail_on_text\n" in caplog.text
    assert "UnexpectedError: ValueError" in caplog.text
    assert TEXT not in caplog.text
