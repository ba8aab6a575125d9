"""Whatever value an option has, over whatever protocol, the answer is no fault of the server's."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import grpc
import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from protocol.open_inference.grpc.stubs import open_inference_pb2 as messages
from protocol.open_inference.grpc.stubs.open_inference_pb2_grpc import GRPCInferenceServiceStub
from protocol.request_parameters import PROTOCOL_PARAMETERS
from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.request_options import OPTION_FLAGS
from runners.core.sampling_parameters import SamplingParameters
from tests.conftest import Dial, GeneratorFolder, ModelFolder, Serve

# Halves of surrogate pairs, which are no text, among the letters.
LETTERS = st.characters(exclude_categories=())
WORDS = st.text(LETTERS, max_size=8) | st.sampled_from(["", "none", "max", "true", "1", "{}", "json", "\0", "\ud800"])
INTEGERS = st.integers() | st.sampled_from([0, 1, -1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**400])
NUMBERS = INTEGERS | st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, 1e308])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
ENCODER_OPTIONS = (*AnswerOptions.model_fields, *OverflowOptions.model_fields, *OPTION_FLAGS)
GENERATOR_OPTIONS = (*(field.name for field in msgspec.structs.fields(SamplingParameters)), *PROTOCOL_PARAMETERS)
# Each takes some ms.
PROPERTY = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
ALLOWED = {200, 400, 413}
CODES = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}


class Server(NamedTuple):
    """A served model, what it is asked, and its options."""

    client: TestClient
    channel: grpc.Channel
    instance: Any
    options: tuple[str, ...]


@pytest.fixture(
    scope="module", params=["sequence_classification", "token_classification", "fill_mask", "text_generation"]
)
def server(
    request: pytest.FixtureRequest,
    serve: Serve,
    dial: Dial,
    model_folder: ModelFolder,
    generator_folder: GeneratorFolder,
) -> Server:
    task = request.param
    if task == "text_generation":
        served = serve(model_dir=generator_folder("llama"), backend="huggingface")
        return Server(served.client, dial(served), "a text", GENERATOR_OPTIONS)
    served = serve(model_dir=model_folder("bert", task))
    return Server(served.client, dial(served), "a [MASK]" if task == "fill_mask" else "a text", ENCODER_OPTIONS)


@pytest.mark.parametrize("place", ["V1", "request", "input", "output"])
@PROPERTY
@example(position=0, value=math.nan)
@example(position=0, value=math.inf)
@example(position=0, value="\ud800")
@example(position=0, value={"\udfff": [10**400]})
@given(position=st.integers(0, 99), value=VALUES)
def test_over_rest(position: int, value: Any, place: str, server: Server) -> None:
    parameters = {server.options[position % len(server.options)]: value}
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": [server.instance]}
    match place:
        case "V1":
            path, body = "/v1/models/model:predict", {"instances": [server.instance], "parameters": parameters}
        case "request":
            path, body = "/v2/models/model/infer", {"inputs": [tensor], "parameters": parameters}
        case "input":
            path, body = "/v2/models/model/infer", {"inputs": [{**tensor, "parameters": parameters}]}
        case _:
            output = {"name": "output-0", "parameters": parameters}
            path, body = "/v2/models/model/infer", {"inputs": [tensor], "outputs": [output]}
    response = server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code in ALLOWED, (parameters, response.text)
    answer = json.loads(response.content)
    assert ("error" in answer) == (response.status_code != 200), answer


GRPC_VALUES = st.one_of(
    st.builds(lambda value: messages.InferParameter(bool_param=value), st.booleans()),
    st.builds(lambda value: messages.InferParameter(int64_param=value), st.integers(-(2**63), 2**63 - 1)),
    st.builds(lambda value: messages.InferParameter(uint64_param=value), st.integers(0, 2**64 - 1)),
    st.builds(lambda value: messages.InferParameter(double_param=value), st.floats()),
    # As JSON, what has parts.
    st.builds(lambda value: messages.InferParameter(string_param=value), st.text(max_size=8) | VALUES.map(json.dumps)),
    st.just(messages.InferParameter()),
)


@PROPERTY
@given(position=st.integers(0, 99), value=GRPC_VALUES)
def test_over_grpc(position: int, value: messages.InferParameter, server: Server) -> None:
    tensor = messages.ModelInferRequest.InferInputTensor(
        name="input-0",
        shape=[1],
        datatype="BYTES",
        contents=messages.InferTensorContents(bytes_contents=[server.instance.encode()]),
    )
    name = server.options[position % len(server.options)]
    request = messages.ModelInferRequest(model_name="model", inputs=[tensor], parameters={name: value})
    stub = GRPCInferenceServiceStub(server.channel)  # type: ignore[no-untyped-call]
    call = stub.ModelInfer.future(request, timeout=60)
    assert call.code() in CODES, (name, value, call.details())
