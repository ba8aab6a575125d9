"""Fuzzed messages over gRPC: right ones with fields changed, or with bytes changed."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.attack.mutation import STRANGE, mutate_bytes
from tests.attack.seeds import ANSWERS, SAMPLING
from tests.wire import set_parameters, to_binary

SERVICE = "/inference.GRPCInferenceService"
# So long a call may take on a busy machine.
_SECONDS = 30
_HEALTH = "/grpc.health.v1.Health/Check"
_INTS = (0, 1, -1, 2, 7, 2**31 - 1, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), 2**64 - 1)
_NAMES = (
    "", "model", "output-0", "input-0", "logits", "input_ids", "attention_mask", "BYTES", "INT64", "FP32", "FP16", "bytes",
    "\0", "é" * 300, "1", "2", *(name for name, _ in (*ANSWERS, *SAMPLING)),
)  # fmt: skip


def make_call(random: Random, generates: bool) -> tuple[str, bytes]:
    """A method and a message for it."""
    method = random.choice((*["ModelInfer"] * 12, *["ModelStreamInfer"] * 3, "ModelMetadata", "ModelReady", "RepositoryIndex", "RepositoryModelLoad", "ServerMetadata", _HEALTH))  # fmt: skip
    message: Message
    match method:
        case "ModelInfer" | "ModelStreamInfer":
            message = _infer_request(random, generates)
        case "RepositoryIndex":
            message = messages.RepositoryIndexRequest(ready=True)
        case "RepositoryModelLoad":
            message = messages.RepositoryModelLoadRequest(model_name="model")
        case "ServerMetadata":
            message = messages.ServerMetadataRequest()
        case _:
            message = messages.ModelMetadataRequest(name="model", version="1")
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        _change(random, _choose(random, message))
    data = message.SerializeToString()
    if data and random.random() < 0.3:
        data = mutate_bytes(random, data)
    return method if method == _HEALTH else f"{SERVICE}/{method}", data


def _infer_request(random: Random, generates: bool) -> messages.ModelInferRequest:
    request = messages.ModelInferRequest(model_name="model", id="1")
    texts = ["a [MASK].", "another"]
    if generates:
        set_parameters(request.parameters, {"max_tokens": 2})
    if random.random() < 0.2:
        for name in ("input_ids", "attention_mask"):
            tensor = request.inputs.add(name=name, datatype="INT64", shape=[1, 4])
            tensor.contents.int64_contents.extend([5, 6, 7, 8] if name == "input_ids" else [1, 1, 1, 0])
        return request
    tensor = request.inputs.add(name="input-0", datatype="BYTES", shape=[len(texts)])
    if random.random() < 0.5:
        tensor.contents.bytes_contents.extend(text.encode() for text in texts)
    else:
        request.raw_input_contents.append(to_binary("BYTES", texts))
    if random.random() < 0.3:
        output = request.outputs.add(name=random.choice(("output-0", "logits", "offset_mapping")))
        set_parameters(output.parameters, {"classification": 1})
    if random.random() < 0.5:
        name, value = random.choice(SAMPLING if generates else ANSWERS)
        if isinstance(value, bool | int | float | str):
            set_parameters(request.parameters, {name: value})
    return request


def _choose(random: Random, message: Message) -> Message:
    """The message, or one somewhere in it."""
    within = [
        item
        for field, value in message.ListFields()
        if field.type == FieldDescriptor.TYPE_MESSAGE
        for item in ([*value] if field.is_repeated and not _is_map(field) else [] if _is_map(field) else [value])
    ]
    return _choose(random, random.choice(within)) if within and random.random() < 0.6 else message


def _is_map(field: Any) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def _change(random: Random, message: Any) -> None:
    if not message.DESCRIPTOR.fields:
        return
    field = random.choice(message.DESCRIPTOR.fields)
    if random.random() < 0.2:
        message.ClearField(field.name)
    elif _is_map(field):
        for _ in range(random.choice((1, 1, 5, 300))):
            parameter = getattr(message, field.name)[random.choice(_NAMES)]
            _change(random, parameter)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if field.is_repeated:
            for _ in range(random.choice((1, 1, 2, 100))):
                _change(random, getattr(message, field.name).add())
        else:
            _change(random, getattr(message, field.name))
    elif field.is_repeated:
        getattr(message, field.name).extend(
            value for _ in range(random.choice((1, 1, 2, 9, 500))) if (value := _value(random, field)) is not None
        )
    elif (value := _value(random, field)) is not None:
        setattr(message, field.name, value)


def _value(random: Random, field: Any) -> Any:
    """One of the field's type; None where the number that was drawn is none of it."""
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return random.choice((b"", b"a", b"\xff", b"\x05\0\0\0a", str(random.choice(STRANGE)).encode(errors="replace")[:3000]))  # fmt: skip
        case FieldDescriptor.CPPTYPE_STRING:
            text = random.choice(STRANGE)
            return (
                text
                if isinstance(text, str) and text.isprintable() and random.random() < 0.3
                else random.choice(_NAMES)
            )
        case FieldDescriptor.CPPTYPE_BOOL:
            return random.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return random.choice((0.0, -1.5, 1e30, float("nan"), float("inf")))
    lowest, highest = {
        FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1), FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
        FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    }.get(field.cpp_type, (-(2**63), 2**63 - 1))  # fmt: skip
    drawn = random.choice(_INTS)
    return drawn if lowest <= drawn <= highest else None


async def call(channel: grpc.aio.Channel, method: str, data: bytes) -> tuple[str, str]:
    """The code of a call, and what it says."""
    try:
        if method.endswith("ModelStreamInfer"):
            # An error of a stream is a message.
            requests: Sequence[bytes] = [data] * 2
            stream = channel.stream_stream(method, None, None)(iter(requests), timeout=_SECONDS)
            async for response in stream:
                error = messages.ModelStreamInferResponse.FromString(response).error_message
                if error.startswith(_INTERNAL):
                    return "INTERNAL", error
        else:
            await channel.unary_unary(method, None, None)(data, timeout=_SECONDS)
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    return "OK", ""


# What protocol/http/errors.py says of its own faults.
_INTERNAL = "internal"


def is_failure(code: str) -> bool:
    """Whether it is the server's fault."""
    return code in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED")
