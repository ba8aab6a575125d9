"""The Open Inference Protocol over REST: health, metadata, `infer`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import orjson
from msgspec import UNSET, Meta, UnsetType
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import calls
from protocol.body import MAX_DIGITS, json_response, parse_json, read_body
from protocol.calls import describe_service, find_ready_model, post_route, render, resolve_options, served_name
from protocol.errors import InvalidRequestError
from protocol.tensors import Tensor, count_elements, flatten, output_tensors, read_strings
from protocol.versions import MODEL_VERSION, SERVER_NAME, SERVER_VERSION
from runners.inference import Models, Options, Prediction, Runner, TensorSpec, TextInput

INPUT = TensorSpec("input-0", "BYTES", (-1,))
BINARY_HEADER = "inference-header-content-length"
_MAX_DIMENSIONS = 8

Dimension = Annotated[int, Meta(ge=0, lt=2**31)]


class InferInput(msgspec.Struct):
    """A tensor of a request; `data` is parsed once its datatype is known."""

    name: str
    shape: Annotated[list[Dimension], Meta(max_length=_MAX_DIMENSIONS)]
    datatype: str
    data: msgspec.Raw | UnsetType = UNSET
    parameters: dict[str, Any] | None = None


class RequestedOutput(msgspec.Struct):
    """An output that the client asks for."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct):
    """A body of `infer`."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: dict[str, Any] | None = None
    outputs: list[RequestedOutput] | None = None


_decoder = msgspec.json.Decoder(InferRequest)
_strings_decoder = msgspec.json.Decoder(list[str | list[str]])


def routes(models: Models, max_request_bytes: int) -> list[Route]:
    """The routes under `/v2`."""

    async def server_metadata(_: Request) -> Response:
        return json_response({"name": SERVER_NAME, "version": SERVER_VERSION, "extensions": ["binary_tensor_data"]})

    async def live(_: Request) -> Response:
        response = json_response({"live": models.live})
        response.status_code = 200 if models.live else 503
        return response

    async def ready(_: Request) -> Response:
        response = json_response({"ready": models.ready})
        response.status_code = 200 if models.ready else 503
        return response

    async def list_models(_: Request) -> Response:
        return json_response({"models": models.names})

    async def model_metadata(request: Request) -> Response:
        runner = find_ready_model(models, served_name(request))
        return json_response(
            {
                "name": runner.name,
                "versions": [MODEL_VERSION],
                "platform": "pytorch_transformers",
                "inputs": [_describe_tensor(INPUT)],
                "outputs": [_describe_tensor(spec) for spec in runner.outputs(runner.default_options)],
            }
        )

    async def model_ready(request: Request) -> Response:
        runner = find_ready_model(models, served_name(request))
        return json_response({"name": runner.name, "ready": True})

    async def infer(request: Request) -> Response:
        runner = find_ready_model(models, served_name(request))
        body = await read_body(request, max_request_bytes, allow_binary=True)
        head, binary = _split(body, request.headers)
        call = parse_json(head, _decoder, "the body")
        texts = _read_texts(call, binary, runner)
        options = resolve_options(runner, call.parameters)
        _check_outputs(call, runner, options)
        predictions = await calls.infer(request, runner, texts, options)
        return await render(lambda found: _render(runner.name, call, found), predictions)

    model, version = "/v2/models/{name:path}", "/versions/{version}"
    return [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/models", list_models),
        *(post_route(f"{model}{form}/infer", infer) for form in (version, "")),
        *(Route(f"{model}{form}/ready", model_ready) for form in (version, "")),
        *(Route(f"{model}{form}", model_metadata) for form in (version, "")),
    ]


def _describe_tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _split(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Split a body of the binary extension into its JSON and the bytes after it."""
    declared = headers.get(BINARY_HEADER)
    if declared is None:
        if headers.get("content-type", "").lower().startswith("application/octet-stream"):
            raise InvalidRequestError(f"a binary body needs the header {BINARY_HEADER}, the bytes of its JSON part")
        return body, memoryview(b"")
    if not declared.isdecimal() or len(declared) > MAX_DIGITS or int(declared) > len(body):
        raise InvalidRequestError(f"{BINARY_HEADER} must be a number of bytes, at most the body's {len(body)}")
    length = int(declared)
    return body[:length], memoryview(body)[length:]


def _read_texts(call: InferRequest, binary: memoryview, runner: Runner) -> list[TextInput]:
    """The texts of a request's one tensor: [N] or [N, 1] are texts, [N, 2] pairs, [] one text."""
    if len(call.inputs) != 1:
        raise InvalidRequestError(f"the request has {len(call.inputs)} inputs; this model takes one tensor of texts")
    tensor = call.inputs[0]
    if tensor.datatype.upper() != INPUT.datatype:
        raise InvalidRequestError(
            f"input {tensor.name!r} is {tensor.datatype!r}; this model takes BYTES: {describe_service(runner)}"
        )
    strings = _read_elements(tensor, binary)
    if count_elements(tensor.shape) != len(strings):
        raise InvalidRequestError(
            f"input {tensor.name!r} has the shape {tensor.shape}, which is {count_elements(tensor.shape)} elements, "
            f"but {len(strings)} are given"
        )
    if not strings:
        raise InvalidRequestError(f"input {tensor.name!r} is empty; give at least one text")
    match tensor.shape:
        case [] | [_] | [_, 1]:
            return [TextInput(text) for text in strings]
        case [_, 2]:
            return [TextInput(text, pair) for text, pair in zip(strings[::2], strings[1::2], strict=True)]
    raise InvalidRequestError(
        f"input {tensor.name!r} has the shape {tensor.shape}; this model takes [texts], [texts, 1] or, for pairs, "
        "[texts, 2]"
    )


def _read_elements(tensor: InferInput, binary: memoryview) -> list[str]:
    what = f"the data of input {tensor.name!r}"
    size = (tensor.parameters or {}).get("binary_data_size")
    if size is None:
        if isinstance(tensor.data, UnsetType):
            raise InvalidRequestError(f"input {tensor.name!r} has neither data nor the parameter binary_data_size")
        if len(binary):
            raise InvalidRequestError(f"{len(binary)} bytes follow the JSON, but no input has binary_data_size")
        strings: list[str | list[str]] = parse_json(tensor.data, _strings_decoder, what)
        return flatten(strings, tensor.shape, what)
    if not isinstance(size, int) or isinstance(size, bool) or size != len(binary):
        raise InvalidRequestError(
            f"binary_data_size of input {tensor.name!r} must be {len(binary)}, the number of bytes after the JSON"
        )
    return read_strings(binary, what)


def _render(model_name: str, call: InferRequest, predictions: Sequence[Prediction]) -> Response:
    tensors = _select(output_tensors(predictions), call)
    outputs: list[dict[str, Any]] = []
    blobs: list[bytes] = []
    for tensor, is_binary in tensors:
        output: dict[str, Any] = {"name": tensor.name, "shape": tensor.shape, "datatype": tensor.datatype}
        if is_binary:
            blobs.append(tensor.to_binary())
            output["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            output["data"] = tensor.flat
        outputs.append(output)
    payload = {
        "model_name": model_name,
        "model_version": MODEL_VERSION,
        # KServe's clients expect an id on every answer.
        "id": call.id or str(uuid.uuid4()),
        "outputs": outputs,
    }
    if not blobs:
        return json_response(payload)
    head = orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(
        b"".join([head, *blobs]), media_type="application/octet-stream", headers={BINARY_HEADER: str(len(head))}
    )


def _check_outputs(call: InferRequest, runner: Runner, options: Options) -> None:
    names = [spec.name for spec in runner.outputs(options)]
    for output in call.outputs or []:
        if output.name not in names:
            raise InvalidRequestError(
                f"Unexpected inference output '{output.name}' for model '{runner.name}'; there are {', '.join(names)}"
            )


def _select(tensors: Sequence[Tensor], call: InferRequest) -> list[tuple[Tensor, bool]]:
    """The outputs that the client asks for, all if it names none, each with whether it is to be binary."""
    all_binary = (call.parameters or {}).get("binary_data_output", False) is True
    if not call.outputs:
        return [(tensor, all_binary) for tensor in tensors]
    by_name = {tensor.name: tensor for tensor in tensors}
    return [
        (by_name[output.name], (output.parameters or {}).get("binary_data", all_binary) is True)
        for output in call.outputs
    ]
