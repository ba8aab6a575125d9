"""Whether an answer is that of the same request before: text must be equal, numbers may differ by rounding.

A text's numbers depend on what else is in its batch, in their last digits.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.soak.http_client import Response
from tests.wire import from_binary, read_outputs

# Of numbers: of their size, and of those near 0.
_RELATIVE, _ABSOLUTE = 2e-3, 2e-4
# What differs from answer to answer: ids and times.
_NAMELESS = re.compile(
    rb'"(id|created|created_at|completed_at|item_id|request_id|time|system_fingerprint)": ?("[^"]*"|[0-9.]+|null)'
)
_HEAD_LENGTH = re.compile(rb"\r\ninference-header-content-length: *(\d+)", re.IGNORECASE)
_COMPRESSED = re.compile(rb"\r\ncontent-encoding: *gzip", re.IGNORECASE)
_SIMILAR_KEPT = 256
_WELL = (200, "OK")


class Answers:
    """The first answer of a request, and others that were found to be the same but for rounding."""

    def __init__(self, read: Callable[[Any], Any]) -> None:
        """
        Args:
            read: what is compared of an answer's bytes: numbers, texts, lists and mappings of them.
        """
        self._read = read
        self._known: set[tuple[object, bytes]] = set()
        self._status: object = None
        self._first: Any = None

    def is_right(self, status: object, answer: bytes) -> bool:
        """Whether it says what the first one said, with the same status; the text of an error must be equal."""
        if (status, answer) in self._known:
            return True
        try:
            value = self._read(answer) if status in _WELL else answer
        except (ValueError, KeyError, IndexError, TypeError):
            return False
        if not self._known:
            self._status, self._first = status, value
        elif status != self._status or not is_similar(self._first, value):
            return False
        if len(self._known) < _SIMILAR_KEPT:
            self._known.add((status, answer))
        return True


def is_similar(first: Any, other: Any) -> bool:
    """Whether two values are equal but for the rounding of numbers."""
    if isinstance(first, dict) and isinstance(other, dict):
        return first.keys() == other.keys() and all(is_similar(value, other[key]) for key, value in first.items())
    if isinstance(first, list | tuple) and isinstance(other, list | tuple):
        return len(first) == len(other) and all(map(is_similar, first, other))
    if isinstance(first, float) and isinstance(other, int | float):
        return math.isclose(first, other, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
    return type(first) is type(other) and bool(first == other)


def strip(response: Response) -> bytes:
    """The body without ids and times; a body of several parts has the length of its head before it."""
    body = gzip.decompress(response.body) if _COMPRESSED.search(response.head) else response.body
    if found := _HEAD_LENGTH.search(response.head):
        return b"%s\n%s" % (found[1], body)
    return _NAMELESS.sub(rb'"\1":null', body)


def read_json(body: bytes) -> Any:
    """A JSON body, whose embeddings may be base64."""
    return _decode_vectors(json.loads(body))


def read_first_prediction(body: bytes) -> Any:
    """Of V1, where the other texts differ from request to request."""
    return json.loads(body)["predictions"][0]


def read_tensors(body: bytes) -> Any:
    """The outputs of an answer of the Open Inference Protocol with binary tensors, after `strip`."""
    length, _, rest = body.partition(b"\n")
    head, data = json.loads(rest[: int(length)]), rest[int(length) :]
    found = []
    for output in head["outputs"]:
        values = output.get("data")
        if values is None:
            size = output["parameters"]["binary_data_size"]
            values, data = from_binary(output["datatype"], data[:size]), data[size:]
        found.append([output["name"], output["shape"], values])
    return found


def read_stream(body: bytes) -> Any:
    """What server-sent events say together, however the text is cut into events."""
    texts: dict[str, str] = {}
    ends = []
    for line in body.split(b"\n"):
        data = line.removeprefix(b"data:").strip()
        if not line.startswith(b"data:"):
            continue
        if data == b"[DONE]":
            ends.append("[DONE]")
            continue
        event = json.loads(data)
        for choice in event.get("choices", ()):
            key = str(choice["index"])
            texts[key] = texts.get(key, "") + (choice.get("text") or choice.get("delta", {}).get("content") or "")
            ends += [choice["finish_reason"]] if choice.get("finish_reason") else []
        if "text_output" in event:
            texts[""] = texts.get("", "") + event["text_output"]
        if "token" in event:
            texts[""] = texts.get("", "") + event["token"]["text"]
            ends += [event["generated_text"]] if event["generated_text"] is not None else []
        if "delta" in event and isinstance(event["delta"], str):
            texts["delta"] = texts.get("delta", "") + event["delta"]
        if event.get("type", "").endswith((".completed", ".incomplete", ".failed")):
            ends.append(event["type"])
        if "error" in event:
            ends.append(json.dumps(event["error"]))
    return [texts, ends]


def read_tensor_message(body: bytes) -> Any:
    """The outputs of gRPC's ModelInferResponse."""
    return _list(read_outputs(messages.ModelInferResponse.FromString(body)))


def join_messages(parts: Iterable[bytes]) -> bytes:
    """The messages of a stream as one answer."""
    return b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def read_stream_messages(body: bytes) -> Any:
    """The outputs, or the error, of each ModelStreamInferResponse of a stream, by the ids of their requests."""
    parts = sorted(
        map(messages.ModelStreamInferResponse.FromString, _split(body)), key=lambda part: part.infer_response.id
    )
    return [[part.error_message, _list(read_outputs(part.infer_response))] for part in parts]


def read_generated_messages(body: bytes) -> Any:
    """The text of a stream's messages together, however it is cut, and their errors."""
    found = read_stream_messages(body)
    texts = [data[0] for _, outputs in found for name, _, _, data in outputs if name == "text_output" and data]
    return ["".join(texts), [error for error, _ in found if error]]


def _split(body: bytes) -> Iterator[bytes]:
    while body:
        size = int.from_bytes(body[:4], "big")
        yield body[4 : 4 + size]
        body = body[4 + size :]


def read_plain(body: bytes) -> Any:
    """The bytes themselves."""
    return body


def _list(outputs: list[tuple[str, str, list[int], list[Any]]]) -> list[list[Any]]:
    return [[*output] for output in outputs]


def _decode_vectors(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode_vectors(each) for each in value]
    if not isinstance(value, dict):
        return value
    decoded = {name: _decode_vectors(each) for name, each in value.items()}
    if isinstance(vector := decoded.get("embedding"), str):
        try:
            decoded["embedding"] = np.frombuffer(base64.b64decode(vector), "<f4").tolist()
        except binascii.Error as error:
            raise ValueError(f"no vector: {vector[:80]}") from error
    return decoded
