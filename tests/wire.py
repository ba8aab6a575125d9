"""One request of the Open Inference Protocol over every wire there is, and its answer in one form."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from starlette.testclient import TestClient

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub

Request = dict[str, Any]

_DTYPES = {
    "BOOL": "?", "UINT8": "<u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8", "INT8": "<i1", "INT16": "<i2",
    "INT32": "<i4", "INT64": "<i8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_CONTENTS = {
    "BOOL": "bool_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """An answer's outputs as (name, datatype, shape, flat data), or an error: its gRPC code and its message."""

    outputs: list[tuple[str, str, list[int], list[Any]]]
    code: str = "OK"
    error: str = ""


def to_binary(datatype: str, data: Sequence[Any]) -> bytes:
    """Elements as the binary extension and gRPC's raw contents have them."""
    if datatype == "BYTES":
        encoded = [str(element).encode() for element in data]
        return b"".join(struct.pack("<I", len(element)) + element for element in encoded)
    return np.array(data, dtype=_DTYPES[datatype]).tobytes()


def from_binary(datatype: str, data: bytes) -> list[Any]:
    """The reverse."""
    if datatype != "BYTES":
        found: list[Any] = np.frombuffer(data, _DTYPES[datatype]).tolist()
        return found
    elements = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        elements.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return elements


def ask_by_json(client: TestClient, _: grpc.Channel, model: str, request: Request) -> Outcome:
    return _read_response(client.post(f"/v2/models/{model}/infer", json=request))


def ask_by_binary(client: TestClient, _: grpc.Channel, model: str, request: Request) -> Outcome:
    blobs = [to_binary(tensor["datatype"], tensor["data"]) for tensor in request["inputs"]]
    inputs = [
        {key: value for key, value in tensor.items() if key != "data"}
        | {"parameters": {**tensor.get("parameters", {}), "binary_data_size": len(blob)}}
        for tensor, blob in zip(request["inputs"], blobs, strict=True)
    ]
    parameters = {"binary_data_output": True, **request.get("parameters", {})}
    head = json.dumps({**request, "inputs": inputs, "parameters": parameters}).encode()
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return _read_response(client.post(f"/v2/models/{model}/infer", content=head + b"".join(blobs), headers=headers))


def ask_by_contents(_: TestClient, channel: grpc.Channel, model: str, request: Request) -> Outcome:
    message = _message(model, request)
    for tensor, given in zip(message.inputs, request["inputs"], strict=True):
        data = [element.encode() if isinstance(element, str) else element for element in given["data"]]
        getattr(tensor.contents, _CONTENTS[given["datatype"]]).extend(data)
    return _call(channel, message)


def ask_by_raw_contents(_: TestClient, channel: grpc.Channel, model: str, request: Request) -> Outcome:
    message = _message(model, request)
    message.raw_input_contents.extend(to_binary(given["datatype"], given["data"]) for given in request["inputs"])
    return _call(channel, message)


WIRES: list[Callable[[TestClient, grpc.Channel, str, Request], Outcome]] = [
    ask_by_json, ask_by_binary, ask_by_contents, ask_by_raw_contents,
]  # fmt: skip

# https://github.com/grpc/grpc/blob/master/doc/http-grpc-status-mapping.md, and ours.
CODES = {
    400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 404: "NOT_FOUND", 413: "RESOURCE_EXHAUSTED",
    429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 501: "UNIMPLEMENTED", 502: "INTERNAL", 503: "UNAVAILABLE",
}  # fmt: skip


def _read_response(response: Any) -> Outcome:
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
        return Outcome([], CODES[response.status_code], response.json()["error"])
    length = int(response.headers.get("inference-header-content-length", len(response.content)))
    head, rest = json.loads(response.content[:length]), response.content[length:]
    outputs = []
    for output in head["outputs"]:
        if "data" in output:
            # JSON prints as few digits of a float32 as tell it from others.
            data = np.array(output["data"], "<f4").tolist() if output["datatype"] == "FP32" else output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            data, rest = from_binary(output["datatype"], rest[:size]), rest[size:]
        outputs.append((output["name"], output["datatype"], output["shape"], data))
    assert not rest
    return Outcome(outputs)


def set_parameters(target: Any, parameters: dict[str, Any]) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    for name, value in parameters.items():
        setattr(target[name], kinds[type(value)], value)


def _message(model: str, request: Request) -> messages.ModelInferRequest:
    message = messages.ModelInferRequest(model_name=model, id=request.get("id", ""))
    set_parameters(message.parameters, request.get("parameters", {}))
    for given in request["inputs"]:
        tensor = message.inputs.add(name=given["name"], datatype=given["datatype"], shape=given["shape"])
        set_parameters(tensor.parameters, given.get("parameters", {}))
    for asked in request.get("outputs", []):
        output = message.outputs.add(name=asked["name"])
        set_parameters(output.parameters, asked.get("parameters", {}))
    return message


def _call(channel: grpc.Channel, message: messages.ModelInferRequest) -> Outcome:
    try:
        response = GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=60)  # type: ignore[no-untyped-call]
    except grpc.RpcError as error:
        return Outcome([], error.code().name, error.details())
    return Outcome(read_outputs(response))


def read_outputs(response: messages.ModelInferResponse) -> list[tuple[str, str, list[int], list[Any]]]:
    """The outputs of an answer over gRPC, raw or not."""
    outputs = []
    for position, output in enumerate(response.outputs):
        if response.raw_output_contents:
            assert not output.contents.ListFields()
            data = from_binary(output.datatype, response.raw_output_contents[position])
        else:
            data = list(getattr(output.contents, _CONTENTS[output.datatype]))
            data = [element.decode() if isinstance(element, bytes) else element for element in data]
        outputs.append((output.name, output.datatype, list(output.shape), data))
    return outputs


def infer_request(
    *texts: str, raw: bool = False, parameters: Mapping[str, Any] | None = None, **fields: Any
) -> messages.ModelInferRequest:
    """ModelInfer's request for texts, which are one tensor.

    Args:
        raw: whether the texts are in `raw_input_contents`.
        fields: the other fields of the request.
    """
    request = messages.ModelInferRequest(**{"model_name": "model", **fields})
    tensor = request.inputs.add(name="input-0", datatype="BYTES", shape=[len(texts)])
    if raw:
        request.raw_input_contents.append(to_binary("BYTES", texts))
    else:
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    set_parameters(request.parameters, dict(parameters or {}))
    return request
