"""The Open Inference Protocol over REST: health, metadata, `infer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import MAX_DIGITS, check_kept_parameters, decode_json, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.json_pieces import encode_json
from protocol.http.routing import post_route, served_name
from protocol.open_inference import dataplane
from protocol.open_inference.dataplane import (
    AnswerTensors,
    InferCall,
    RequestedOutput,
    answer_id,
    check_tensor_counts,
    describe_model,
)
from protocol.tensors import (
    DATATYPES,
    MAX_DIMENSION,
    MAX_DIMENSIONS,
    Tensor,
    check_elements,
    check_placement,
    tensor_from_binary,
    tensor_from_json,
)
from protocol.versions import EXTENSIONS, SERVER_NAME, SERVER_VERSION
from runners.core.errors import InputError
from runners.core.models import Models, find_probed_model, find_ready_model
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner

_BINARY_TYPE = "application/octet-stream"
BINARY_HEADER = "inference-header-content-length"

Dimension = Annotated[int, Meta(ge=0, le=MAX_DIMENSION)]


class InferInput(msgspec.Struct):
    """A tensor of a request."""

    name: str
    shape: Annotated[list[Dimension], Meta(max_length=MAX_DIMENSIONS)]
    datatype: Annotated[str, Meta(extra_json_schema={"enum": [*DATATYPES]})]
    # Checked once the datatype is known.
    data: Annotated[Any, Meta(extra_json_schema={"type": "array"})] = UNSET
    parameters: dict[str, Any] | None = None


class InferOutput(msgspec.Struct):
    """An output that the client requests by name."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """The body of `infer`."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[InferOutput] | None = None


_decoder = msgspec.json.Decoder(InferRequest)


def routes(models: Models, limits: RequestLimits) -> list[Route]:
    """The other routes under `/v2`."""

    async def server_metadata(_: Request) -> Response:
        return json_response({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": EXTENSIONS})

    async def list_models(_: Request) -> Response:
        return json_response({"models": models.names})

    async def model_metadata(request: Request) -> Response:
        return json_response(describe_model(models, find_ready_model(models, *served_name(request))))

    async def model_ready(request: Request) -> Response:
        runner = find_probed_model(models, *served_name(request))
        return json_response({"name": runner.name, "ready": True})

    async def infer(request: Request) -> Response:
        runner = find_ready_model(models, *served_name(request))
        body = await read_body(request, limits, [_BINARY_TYPE])
        client_id, call = await body.decode(lambda data: _read(data, request.headers, limits))
        request_id = answer_id(client_id)
        return await until_disconnect(
            request, dataplane.infer(runner, call, limits, lambda answer: _render(runner, request_id, answer))
        )

    model, version = "/v2/models/{name:path}", "/versions/{version}"
    return [
        Route("/v2", server_metadata),
        Route("/v2/models", list_models),
        *(post_route(f"{model}{form}/infer", infer) for form in (version, "")),
        *(Route(f"{model}{form}/ready", model_ready) for form in (version, "")),
        *(Route(f"{model}{form}", model_metadata) for form in (version, "")),
    ]


def _read(body: bytes, headers: Mapping[str, str], limits: RequestLimits) -> tuple[str | None, InferCall]:
    """The request's id, and the request."""
    head, binary = _split(body, headers)
    call = decode_json(head, _decoder, limits)
    outputs = [RequestedOutput(output.name, output.parameters or {}) for output in call.outputs or []]
    parameters = [tensor.parameters or {} for tensor in call.inputs]
    check_tensor_counts(call.parameters or {}, parameters, [output.parameters for output in outputs], limits)
    check_kept_parameters(body, (call.id, call.parameters, parameters, outputs), limits)
    return call.id, InferCall(_read_tensors(call, binary, limits), call.parameters or {}, outputs)


def _split(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Split a body of the binary extension into its JSON and the bytes after it."""
    declared = headers.get(BINARY_HEADER)
    if declared is None:
        if headers.get("content-type", "").lower().startswith(_BINARY_TYPE):
            raise InputError(f"a binary body needs the header {BINARY_HEADER}, the bytes of its JSON part")
        return body, memoryview(b"")
    if not declared.isdecimal() or len(declared) > MAX_DIGITS or int(declared) > len(body):
        raise InputError(f"{BINARY_HEADER} must be a number of bytes, at most the body's {len(body)}")
    length = int(declared)
    # These are copies, so that a tensor does not keep the JSON in memory.
    return body[:length], memoryview(body[length:])


def _read_tensors(call: InferRequest, binary: memoryview, limits: RequestLimits) -> list[Tensor]:
    tensors = []
    position = 0
    for tensor in call.inputs:
        check_placement(tensor.name, tensor.parameters or {})
        size = (tensor.parameters or {}).get("binary_data_size")
        if size is None:
            if isinstance(tensor.data, UnsetType):
                raise InputError(f"input {tensor.name!r} has neither data nor the parameter binary_data_size")
            tensors.append(tensor_from_json(tensor.name, tensor.datatype, tensor.shape, tensor.data))
            continue
        left = len(binary) - position
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= left:
            raise InputError(
                f"binary_data_size of input {tensor.name!r} must be a number of bytes, at most the {left} that follow"
            )
        data = binary[position : position + size]
        check_elements(tensor.name, tensor.datatype, size, tensor.shape, limits)
        tensors.append(tensor_from_binary(tensor.name, tensor.datatype, tensor.shape, data))
        position += size
    if position != len(binary):
        raise InputError(
            f"{len(binary)} bytes follow the JSON, but the inputs' binary_data_size are {position} together"
        )
    return tensors


def _render(runner: Runner, request_id: str, answer: AnswerTensors) -> Response:
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes | memoryview] = []
    for tensor, is_binary in answer:
        output: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        if is_binary:
            blobs.append(tensor.to_binary())
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = tensor.flat
        outputs.append(output)
    payload = {"model_name": runner.name, "model_version": runner.version, "id": request_id, "outputs": outputs}
    values = sum(len(tensor.flat) for tensor, is_binary in answer if not is_binary)
    if not blobs:
        return json_response(payload, values)
    head = encode_json(payload, values)
    return Response(b"".join([head, *blobs]), media_type=_BINARY_TYPE, headers={BINARY_HEADER: str(len(head))})
