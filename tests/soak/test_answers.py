from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from tests.soak.answers import (
    Answers,
    join_messages,
    read_first_prediction,
    read_generated_messages,
    read_json,
    read_stream,
    read_stream_messages,
    read_tensors,
    strip,
)
from tests.soak.http_client import Response
from tests.wire import to_binary


def embed(*numbers: float) -> bytes:
    return base64.b64encode(np.array(numbers, "<f4").tobytes())


def event(**fields: Any) -> bytes:
    return b"data: %s\n\n" % json.dumps(fields).encode()


def piece(text: str, end: str | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "finish_reason": end}])


def token(text: str, generated: str | None = None) -> bytes:
    return event(token={"text": text}, generated_text=generated)


def delta(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}}])


def message(number: str, text: str, error: str = "") -> bytes:
    made = messages.ModelStreamInferResponse(error_message=error)
    made.infer_response.id = number
    if text:
        made.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        made.infer_response.raw_output_contents.append(to_binary("BYTES", [text]))
    return made.SerializeToString()


@pytest.mark.parametrize(
    ("read", "first", "other", "right"),
    [
        (read_json, b'{"score": 0.5}', b'{"score": 0.5}', True),
        (read_json, b'{"score": 0.5}', b'{"score": 0.50001}', True),
        (read_json, b'{"score": 0.5}', b'{"score": 0.6}', False),
        (read_json, b'{"label": "a"}', b'{"label": "b"}', False),
        (read_json, b'{"label": 1}', b'{"label": 2}', False),
        (read_json, b"[1, 2]", b"[1]", False),
        (read_json, b'{"a": null}', b'{"b": null}', False),
        (read_json, b'{"score": 0.5}', b'{"score": 0.5', False),
        (read_json, b'{"score": true}', b'{"score": 1}', False),
        (read_json, b'{"embedding": "%s"}' % embed(0.5, -1), b'{"embedding": "%s"}' % embed(0.50001, -1), True),
        (read_json, b'{"embedding": "%s"}' % embed(0.5, -1), b'{"embedding": "%s"}' % embed(0.5, 1), False),
        (read_first_prediction, b'{"predictions": [1, 2]}', b'{"predictions": [1, 3]}', True),
        (read_first_prediction, b'{"predictions": [1, 2]}', b'{"predictions": [2, 2]}', False),
        (read_stream, piece("ab") + piece("c", "stop"), piece("a") + piece("bc", "stop"), True),
        (read_stream, piece("ab") + piece("c", "stop"), piece("ab") + piece("c", "length"), False),
        (read_stream, piece("ab", "stop"), piece("ab"), False),
        (read_stream, delta("a") + delta("b"), delta("ab"), True),
        (read_stream, delta("a") + b"data: [DONE]\n\n", delta("a"), False),
        (read_stream, event(text_output="a") + event(text_output="b"), event(text_output="ab"), True),
        (read_stream, event(text_output="ab"), event(text_output="a") + event(error="it died"), False),
        (read_stream, token("a") + token("b", "ab"), token("ab", "ab"), True),
        (read_stream, token("a") + token("b", "ab"), token("ab"), False),
        (read_stream, event(type="response.completed"), event(type="response.failed"), False),
        (read_stream_messages, join_messages([message("1", "a"), message("2", "b")]), join_messages([message("2", "b"), message("1", "a")]), True),
        (read_stream_messages, join_messages([message("1", "a"), message("2", "b")]), join_messages([message("1", "b"), message("2", "a")]), False),
        (read_stream_messages, join_messages([message("1", "a")]), join_messages([message("1", "a", "wrong")]), False),
        (read_generated_messages, join_messages([message("1", "a"), message("1", "b")]), join_messages([message("1", "ab")]), True),
        (read_generated_messages, join_messages([message("1", "a")]), join_messages([message("1", "")]), False),
    ],
)  # fmt: skip
def test_right_answers(read: Callable[[bytes], Any], first: bytes, other: bytes, right: bool) -> None:
    answers = Answers(read)
    assert answers.is_right(200, first)
    # Twice, since what was right is known the second time.
    assert [answers.is_right(200, other) for _ in range(2)] == [right] * 2
    assert answers.is_right(200, first)


def test_another_status_is_wrong() -> None:
    answers = Answers(read_json)
    assert answers.is_right(400, b"no mask")
    assert answers.is_right(400, b"no mask")
    assert not answers.is_right(200, b"{}")
    assert not answers.is_right(400, b"no text")


def test_a_first_answer_that_cannot_be_read_is_wrong() -> None:
    answers = Answers(read_json)
    assert not answers.is_right(200, b"{")
    assert answers.is_right(200, b"{}")


def test_ids_and_times_are_not_compared() -> None:
    body = b'{"id":"cmpl-1","created": 17, "model":"a"}'
    assert strip(Response(200, b"", body)) == b'{"id":null,"created":null, "model":"a"}'
    compressed = Response(200, b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n", gzip.compress(body))
    assert strip(compressed) == strip(Response(200, b"", body))


def test_binary_tensors() -> None:
    def answer(value: float) -> bytes:
        output = {"name": "output-0", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}}
        head = json.dumps({"outputs": [output, {"name": "b", "datatype": "INT64", "shape": [1], "data": [7]}]}).encode()
        fields = b"HTTP/1.1 200 OK\r\ninference-header-content-length: %d\r\n" % len(head)
        return strip(Response(200, fields, head + to_binary("FP32", [value])))

    assert read_tensors(answer(0.5)) == [["output-0", [1], [0.5]], ["b", [1], [7]]]
    answers = Answers(read_tensors)
    assert [answers.is_right(200, answer(value)) for value in (0.5, 0.50001, 0.6)] == [True, True, False]
