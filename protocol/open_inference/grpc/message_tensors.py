"""Tensors in gRPC's messages: read from requests, and encoded as answers, some ms at a time."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

import numpy as np

from protocol.http.offload import give_way, offload_large
from protocol.open_inference.dataplane import AnswerTensors, InferCall, RequestedOutput, answer_id, check_tensor_counts
from protocol.open_inference.grpc.calls import INLINE_BYTES
from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.tensors import (
    BYTES,
    Tensor,
    check_datatype,
    check_elements,
    check_placement,
    check_shape,
    read_text,
    tensor_from_binary,
    to_array,
)
from runners.core.errors import InputError
from runners.core.models import Models, find_ready_model
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner

# The elements that one call copies; the call takes some ms and stops other threads.
_AT_ONCE = 2**15
# The wire type of a field of bytes: https://protobuf.dev/programming-guides/encoding/#structure
_LENGTH_DELIMITED = 2
_OUTPUTS = messages.ModelInferResponse.OUTPUTS_FIELD_NUMBER
_RAW_CONTENTS = messages.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER
_OUTPUT_CONTENTS = messages.ModelInferResponse.InferOutputTensor.CONTENTS_FIELD_NUMBER
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    BYTES: "bytes_contents",
}


async def read_infer(
    models: Models, request: messages.ModelInferRequest, size: int, limits: RequestLimits
) -> tuple[Runner, InferCall]:
    """The model that a request names, and the call.

    Args:
        size: the bytes of the encoded request.

    Raises:
        ModelNotFoundError, VersionNotFoundError: there is no such model.
        ModelNotReadyError: the model is not loaded.
        InputError: as `read_call`.
    """
    runner = find_ready_model(models, request.model_name, request.model_version)
    return runner, await offload_large(lambda: read_call(request, limits), size, INLINE_BYTES)


def read_call(request: messages.ModelInferRequest, limits: RequestLimits) -> InferCall:
    """
    Raises:
        LimitExceededError: the request exceeds a limit.
        InputError: a tensor does not fit its datatype and shape.
    """
    parameters = [tensor.parameters for tensor in request.inputs]
    check_tensor_counts(request.parameters, parameters, [output.parameters for output in request.outputs], limits)
    return InferCall(
        _read_tensors(request, limits),
        _read_parameters(request.parameters),
        [RequestedOutput(output.name, _read_parameters(output.parameters)) for output in request.outputs],
        binary=bool(request.raw_input_contents),
    )


def _read_parameters(parameters: MutableMapping[str, messages.InferParameter]) -> dict[str, Any]:
    return {
        name: getattr(value, kind)
        for name, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _read_tensors(request: messages.ModelInferRequest, limits: RequestLimits) -> list[Tensor]:
    for tensor in request.inputs:
        check_placement(tensor.name, tensor.parameters)
    raw = request.raw_input_contents
    if not raw:
        return [_read_contents(tensor) for tensor in request.inputs]
    if len(raw) != len(request.inputs):
        # This text and the next are KServe's.
        raise InputError(
            f"the number of inputs ({len(request.inputs)}) does not match the expected number of raw input contents "
            f"({len(raw)}) for model '{request.model_name}'."
        )
    for tensor in request.inputs:
        if tensor.contents.ListFields():
            raise InputError(
                f"contents field must not be specified when using raw_input_contents for input '{tensor.name}' for "
                f"model '{request.model_name}'"
            )
    for tensor, data in zip(request.inputs, raw, strict=True):
        check_elements(tensor.name, tensor.datatype, len(data), tensor.shape, limits)
    return [
        tensor_from_binary(tensor.name, tensor.datatype, tensor.shape, memoryview(data))
        for tensor, data in zip(request.inputs, raw, strict=True)
    ]


def _read_contents(tensor: messages.ModelInferRequest.InferInputTensor) -> Tensor:
    name, datatype = tensor.name, check_datatype(tensor.name, tensor.datatype)
    if datatype not in _CONTENTS:
        raise InputError(f"input {name!r} is {datatype}: it goes into raw_input_contents only")
    if wrong := [field.name for field, _ in tensor.contents.ListFields() if field.name != _CONTENTS[datatype]]:
        raise InputError(f"input {name!r} is {datatype}, which goes into {_CONTENTS[datatype]}, not {wrong[0]}")
    values: Sequence[Any] = getattr(tensor.contents, _CONTENTS[datatype])
    shape = check_shape(name, tensor.shape, len(values))
    if datatype == BYTES:
        what = f"the data of input {name!r}"
        return Tensor(name, datatype, shape, [read_text(value, i, what) for i, value in enumerate(values)])
    parts = [to_array(name, datatype, values[i : i + _AT_ONCE]) for i in range(0, max(1, len(values)), _AT_ONCE)]
    return Tensor(name, datatype, shape, parts[0] if len(parts) == 1 else np.concatenate(parts))


def encode_answer(
    request: messages.ModelInferRequest, version: str, answer: AnswerTensors, is_final: bool | None = None
) -> bytes:
    """An encoded ModelInferResponse: all tensors raw or none, as the protocol has it.

    Args:
        version: the version of the model that answered.
        is_final: whether a response of a stream is its request's last; None outside of streams.
    """
    response = messages.ModelInferResponse(
        model_name=request.model_name, model_version=version, id=answer_id(request.id)
    )
    if is_final is not None:
        # KServe's and Triton's streams have this parameter.
        response.parameters["triton_final_response"].bool_param = is_final
    raw = any(binary for _, binary in answer)
    parts: list[bytes | memoryview] = [response.SerializeToString()]
    for tensor, _ in answer:
        described = messages.ModelInferResponse.InferOutputTensor(
            name=tensor.name, datatype=tensor.datatype, shape=tensor.shape
        )
        contents = [] if raw else encode_field(_OUTPUT_CONTENTS, list(_encode_contents(tensor)))
        parts += encode_field(_OUTPUTS, [described.SerializeToString(), *contents])
    if raw:
        for tensor, _ in answer:
            parts += encode_field(_RAW_CONTENTS, [tensor.to_binary()])
    return b"".join(parts)


def encode_field(number: int, parts: Sequence[bytes | memoryview]) -> list[bytes | memoryview]:
    """A field of a message or of bytes, whose content is in parts."""
    head = bytearray()
    for value in (number << 3 | _LENGTH_DELIMITED, sum(map(len, parts))):
        while value > 0x7F:
            head.append(value & 0x7F | 0x80)
            value >>= 7
        head.append(value)
    return [bytes(head), *parts]


def _encode_contents(tensor: Tensor) -> Iterator[bytes]:
    """Several packed fields of one name are one: https://protobuf.dev/programming-guides/encoding/#packed"""
    field = _CONTENTS[tensor.datatype]
    for start in range(0, len(tensor.flat), _AT_ONCE):
        part = tensor.flat[start : start + _AT_ONCE]
        values = [element.encode() for element in part] if isinstance(part, list) else part.tolist()
        give_way()
        contents = messages.InferTensorContents()
        getattr(contents, field).extend(values)
        yield contents.SerializeToString()
