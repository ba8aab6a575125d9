from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError

from protocol.open_inference.grpc import message_counts
from protocol.open_inference.grpc.message_counts import check_message_amounts
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from runners.core.errors import LimitExceededError
from runners.core.request_limits import RequestLimits

FORM = messages.ModelInferRequest
LIMITS = RequestLimits(max_json_values=40, max_json_containers=9)


@pytest.fixture(autouse=True)
def _no_message_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_counts, "_SMALL_BYTES", 0)


def ints(count: int) -> bytes:
    request = FORM(model_name="a" * 1000)
    request.inputs.add(name="x").contents.int64_contents.extend([300] * count)
    return request.SerializeToString()


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (ints(30), None),
        (ints(50), "elements of the message are more than the 40 that --max_json_values allows"),
        (FORM(raw_input_contents=[b""] * 9).SerializeToString(), None),
        (FORM(raw_input_contents=[b""] * 10).SerializeToString(), "10 fields of messages are more than the 9 that --max_json_containers allows"),
        (FORM(inputs=[FORM.InferInputTensor()] * 9).SerializeToString(), None),
        (FORM(inputs=[FORM.InferInputTensor()] * 10).SerializeToString(), "10 fields of messages"),
        (FORM(inputs=[FORM.InferInputTensor(name="a")] * 5).SerializeToString(), "10 fields of messages"),
        (FORM(parameters={str(i): messages.InferParameter() for i in range(4)}).SerializeToString(deterministic=True), "12 fields of messages"),
        (b"\x78\x01" * 10, "10 fields of messages"),
        (b"\x78\x81\x01" * 10, "10 fields of messages"),
    ],
)  # fmt: skip
def test_amounts(data: bytes, error: str | None) -> None:
    if error is None:
        check_message_amounts(data, FORM, LIMITS)
        return
    with pytest.raises(LimitExceededError, match=error):
        check_message_amounts(data, FORM, LIMITS)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 20,
        b"\x0a",
        b"\x0a\x05ab",
        b"\x2a\x03\x0a\x09a",
        b"\x0b\x0c",
        b"\x0f",
        b"\x09\x01",
        b"\x78",
        b"\x78\x81",
        b"\x82",
    ],
)
def test_what_is_no_message(data: bytes) -> None:
    with pytest.raises(DecodeError):
        check_message_amounts(data, FORM, LIMITS)
