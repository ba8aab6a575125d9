from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.internal import api_implementation

from protocol.open_inference.grpc import message_tensors
from protocol.open_inference.grpc.message_tensors import encode_answer, read_call
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.tensors import Tensor
from runners.core.request_limits import RequestLimits
from tests.wire import read_outputs


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_tensors, "_AT_ONCE", 2)


VALUES: list[tuple[str, Any]] = [
    ("FP32", np.array([1.5, -2, 0, 4, 5], np.float32)),
    ("FP64", np.array([1.5, -2, 0, 4, 5])),
    ("INT64", np.array([300, -1, 0, 2**40, 5])),
    ("BOOL", np.array([True, False, True, True, False])),
    ("BYTES", ["a", "é", "", "漢", "e"]),
]


@pytest.mark.parametrize("raw", [False, True])
def test_an_answer_in_pieces_is_one_message(raw: bool) -> None:
    request = messages.ModelInferRequest(model_name="m", id="7")
    tensors = [Tensor(datatype, datatype, [5, 1], values) for datatype, values in VALUES]
    encoded = encode_answer(request, "2", [(tensor, raw) for tensor in tensors], is_final=True)
    response = messages.ModelInferResponse.FromString(encoded)
    assert (response.model_name, response.model_version, response.id) == ("m", "2", "7")
    assert response.parameters["triton_final_response"].bool_param is True
    assert read_outputs(response) == [(name, name, [5, 1], list(values)) for name, values in VALUES]


def test_elements_are_read_in_pieces() -> None:
    request = messages.ModelInferRequest()
    request.inputs.add(name="x", datatype="INT64", shape=[5]).contents.int64_contents.extend([1, 2, 3, 4, 5])
    [tensor] = read_call(request, RequestLimits()).inputs
    assert np.asarray(tensor.flat).tolist() == [1, 2, 3, 4, 5]


def test_messages_are_those_of_the_c_library() -> None:
    """Protobuf's Python implementation takes ten times as long, and is used without a word where upb is missing."""
    assert api_implementation.Type() == "upb"
