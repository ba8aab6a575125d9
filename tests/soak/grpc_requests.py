"""Requests over gRPC: right ones, also in streams, and wrong ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from grpc_health.v1 import health_pb2

from benchmarks.texts import docstrings
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.soak.answers import (
    Answers,
    read_generated_messages,
    read_plain,
    read_stream_messages,
    read_tensor_message,
)
from tests.soak.servers import ENCODERS, GENERATION, MOST_MESSAGE_BYTES, SPARE
from tests.wire import infer_request

SERVICE = "/inference.GRPCInferenceService"
INFER, STREAM = f"{SERVICE}/ModelInfer", f"{SERVICE}/ModelStreamInfer"
_HEALTH = "/grpc.health.v1.Health/Check"
_OK = frozenset({"OK"})
_OFTEN, _USUAL, _SELDOM = 6.0, 0.5, 0.2
# Requests of a stream.
_STREAMED = 6
_GREEDY = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}


@dataclass(frozen=True)
class GrpcRequest:
    """A call and what its answer must be.

    Attributes:
        kind: what its latency is counted under.
        data: its messages; several make a stream.
        codes: the codes that it may end with; only of OK is the answer compared.
    """

    kind: str
    method: str
    data: Sequence[bytes]
    weight: float
    codes: frozenset[str] = _OK
    answers: Answers = field(default_factory=lambda: Answers(read_tensor_message))

    @property
    def is_stream(self) -> bool:
        return self.method == STREAM


def make_requests() -> list[GrpcRequest]:
    """All requests over gRPC."""
    return [*_infer(), *_streams(), *_others(), *_wrong()]


def infer_message(model: str, *texts: str, number: int = 0, **more: Any) -> bytes:
    """A ModelInferRequest of these texts; see `infer_request`."""
    return infer_request(*texts, model_name=model, id=str(number), **more).SerializeToString()


def _infer() -> Iterator[GrpcRequest]:
    text = docstrings()[0]
    asked: dict[str, tuple[str, ...]] = {"fill_mask": ("a [MASK].",)}
    # Pairs of texts have another shape.
    for task in sorted(ENCODERS.keys() - {"question_answering", "text_ranking"}):
        options = {"candidate_labels": "a,b"} if task == "zero_shot_classification" else {}
        texts = asked.get(task, (text, "another"))
        for raw in (False, True):
            weight = _OFTEN if task == "text_embedding" else _USUAL
            yield GrpcRequest(f"grpc {task}", INFER, [infer_message(task, *texts, raw=raw, parameters=options)], weight)
    data = infer_message(GENERATION, "a text", parameters=_GREEDY)
    yield GrpcRequest(f"grpc {GENERATION}", INFER, [data], _SELDOM)
    yield GrpcRequest("grpc spare", INFER, [infer_message(SPARE, "a")], _USUAL, frozenset({"OK", "UNAVAILABLE"}))


def _streams() -> Iterator[GrpcRequest]:
    several = [
        infer_message("text_embedding", text, number=number) for number, text in enumerate(docstrings()[:_STREAMED])
    ]
    wrong = infer_message("nothing", "a", number=_STREAMED)
    yield GrpcRequest("grpc stream", STREAM, several, _USUAL, answers=Answers(read_stream_messages))
    yield GrpcRequest(
        "grpc stream", STREAM, [several[0], wrong, several[1]], _SELDOM, answers=Answers(read_stream_messages)
    )
    data = [infer_message(GENERATION, "a text", parameters=_GREEDY)]
    yield GrpcRequest("grpc generated stream", STREAM, data, _SELDOM, answers=Answers(read_generated_messages))


def _others() -> Iterator[GrpcRequest]:
    read: Callable[[Any], Any] = read_plain
    yield GrpcRequest(
        "grpc health", _HEALTH, [health_pb2.HealthCheckRequest().SerializeToString()], _SELDOM, answers=Answers(len)
    )
    metadata = messages.ModelMetadataRequest(name=GENERATION).SerializeToString()
    yield GrpcRequest("grpc metadata", f"{SERVICE}/ModelMetadata", [metadata], _SELDOM, answers=Answers(len))
    yield GrpcRequest("grpc live", f"{SERVICE}/ServerLive", [b""], _SELDOM, answers=Answers(read))


def _wrong() -> Iterator[GrpcRequest]:
    large = infer_message("text_embedding", *["a text"] * (MOST_MESSAGE_BYTES // 8))
    shape = messages.ModelInferRequest(model_name="text_embedding")
    shape.inputs.add(name="input-0", datatype="BYTES", shape=[3]).contents.bytes_contents.append(b"a")
    wrong = [
        (infer_message("nothing", "a"), "NOT_FOUND"),
        (shape.SerializeToString(), "INVALID_ARGUMENT"),
        (infer_message("text_embedding", "a", parameters={"dimensions": -1}), "INVALID_ARGUMENT"),
        (large, "RESOURCE_EXHAUSTED"),
    ]
    for data, code in wrong:
        yield GrpcRequest(f"wrong: {code}", INFER, [data], _SELDOM / 2, frozenset({code}))
