"""The predictor over gRPC."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from protocol.open_inference.grpc.methods import SERVICE
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protocol.open_inference.predictor.wire import Metadata, make_timeout_error, quote_words
from protocol.tensors import Tensor, check_shape, tensor_from_binary
from runners.core.arguments import Arguments
from runners.core.errors import (
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    PredictorUnavailableError,
)
from runners.core.tracing import Target, trace_call

_GRPC_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default gRPC tries to reconnect to a predictor after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
_GRPC_REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
# A part of gRPC's own message about a message above the predictor's limit, in either direction.
_TOO_LARGE = "larger than max"
_INFER = "ModelInfer"
_CONTENTS = {"FP32": "fp32_contents", "FP64": "fp64_contents"}


class GrpcWire:
    """The predictor over gRPC, with tensors as raw contents."""

    def __init__(self, arguments: Arguments) -> None:
        host = str(arguments.predictor_host)
        if ":" not in host.rpartition("]")[2]:
            # The ports of REST; gRPC's default is 443 even without TLS.
            host += ":443" if arguments.predictor_use_ssl else ":80"
        self._host = host
        self._model = arguments.model_name
        if arguments.predictor_use_ssl:
            # Python's TLS, and so REST, follows the same variable.
            certificates = os.environ.get("SSL_CERT_FILE")
            roots = Path(certificates).read_bytes() if certificates else None
            self._channel = grpc.secure_channel(host, grpc.ssl_channel_credentials(roots), _GRPC_OPTIONS)
        else:
            self._channel = grpc.insecure_channel(host, _GRPC_OPTIONS)
        self._stub = GRPCInferenceServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def metadata(self, seconds: float) -> Metadata:
        model = self._call("ModelMetadata", messages.ModelMetadataRequest(name=self._model), seconds)
        return Metadata(
            {tensor.name: tensor.datatype for tensor in model.inputs},
            [tensor.name for tensor in model.outputs],
            binary=True,
        )

    def infer(self, inputs: Sequence[Tensor], output: str | None, binary: bool, seconds: float) -> list[Tensor]:
        request = messages.ModelInferRequest(model_name=self._model)
        for tensor in inputs:
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
            request.raw_input_contents.append(bytes(tensor.to_binary()))
        if output is not None:
            request.outputs.add(name=output)
        answer = self._call(_INFER, request, seconds)
        if not answer.raw_output_contents:
            return [_read_contents(tensor) for tensor in answer.outputs]
        if len(answer.raw_output_contents) != len(answer.outputs):
            raise PredictorAnswerError(
                f"the predictor answered with {len(answer.outputs)} outputs and the contents of "
                f"{len(answer.raw_output_contents)}"
            )
        return [
            tensor_from_binary(tensor.name, tensor.datatype, tensor.shape, memoryview(raw), "output")
            for tensor, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
        ]

    def ready(self, seconds: float) -> bool:
        answer = self._call("ModelReady", messages.ModelReadyRequest(name=self._model), seconds)
        return bool(answer.ready)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: str, request: Any, seconds: float) -> Any:
        with trace_call(Target("", f"/{SERVICE}/{method}", self._host)) as call:
            try:
                answer = getattr(self._stub, method)(request, timeout=seconds, metadata=(*call.headers.items(),))
            except grpc.RpcError as error:
                call.note_status(error.code().name)
                raise _explain_grpc(error, method == _INFER) from error
            except ValueError as error:
                raise PredictorUnavailableError("the server is shutting down") from error
            call.note_status(grpc.StatusCode.OK.name)
            return answer


def _explain_grpc(error: Any, infers: bool) -> PredictorError:
    code, words = error.code(), quote_words(error.details() or "")
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            # The details may tell of the network, which clients must not learn.
            return PredictorUnavailableError("the predictor cannot be reached, or its model is not ready")
        case grpc.StatusCode.RESOURCE_EXHAUSTED if infers and _TOO_LARGE in words:
            return PredictorRefusalError(f"the predictor refuses the tensors: {words}")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return PredictorUnavailableError(f"the predictor is not available: {words}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return make_timeout_error()
        case _ if infers and code in _GRPC_REFUSED:
            return PredictorRefusalError(f"the predictor refuses the tensors: {words}")
    return PredictorAnswerError(f"the predictor answered with an error: {code.name}, {words}")


def _read_contents(tensor: Any) -> Tensor:
    if tensor.datatype not in _CONTENTS:
        raise PredictorAnswerError(
            f"the predictor's output {tensor.name} is {tensor.datatype}, which it must send as raw contents"
        )
    values = np.array(getattr(tensor.contents, _CONTENTS[tensor.datatype]))
    shape = check_shape(tensor.name, tensor.shape, len(values), "output")
    return Tensor(tensor.name, tensor.datatype, shape, values)
