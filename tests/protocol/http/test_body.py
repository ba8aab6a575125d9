"""What of a body is counted while the model works: what was made of it."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from starlette.testclient import TestClient

from protocol.http.body_budget import BodyBudget, count_kept
from protocol.open_inference.rest import _read
from runners.core.admission import Admission
from runners.core.predictions import TextInput
from runners.core.request_limits import RequestLimits
from runners.encoder.runner import EncoderRunner
from tests.conftest import GeneratorFolder, ModelFolder, Serve

SPACES = b" " * 4 * 2**20
# Than a text, and all labels of a request, may be.
LONG = "a" * (2**20 + 1000 * 4096 + 1)
EVENT = {"specversion": "1.0", "id": "1", "source": "a", "type": "b"}
ZIPPED = {"content-type": "application/json", "content-encoding": "gzip"}
STRUCTURED = {**ZIPPED, "content-type": "application/cloudevents+json"}
BINARY = {**ZIPPED, **{f"ce-{name}": value for name, value in EVENT.items()}}
INPUT = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["hello"]}


@pytest.fixture(scope="module")
def embedder(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_embedding"), model_name="model").client


@pytest.fixture(scope="module")
def generator(generator_folder: GeneratorFolder, serve: Serve) -> TestClient:
    return serve(model_dir=generator_folder("llama"), model_name="model", backend="huggingface").client


def find_budget(client: TestClient) -> BodyBudget:
    application: Any = client.app
    budget: BodyBudget = application.budget
    return budget


def watch(monkeypatch: pytest.MonkeyPatch, budget: BodyBudget, owner: type, method: str) -> list[int]:
    """The bytes that are taken whenever the method is called."""
    taken: list[int] = []
    original = getattr(owner, method)

    def call(*args: Any, **kwargs: Any) -> Any:
        taken.append(budget.most - budget.left)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, method, call)
    return taken


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/models/model:predict", {"instances": ["hello"]}, ZIPPED),
        ("/v1/models/model:predict", {"instances": ["hello"]}, BINARY),
        ("/v1/models/model:predict", {**EVENT, "data": {"instances": ["hello"]}}, STRUCTURED),
        ("/v2/models/model/infer", {"inputs": [INPUT]}, ZIPPED),
        ("/embed", {"inputs": "hello"}, ZIPPED),
        ("/v1/embeddings", {"input": "hello"}, ZIPPED),
        ("/v1/rerank", {"query": "hello", "documents": ["a", "b"]}, ZIPPED),
        ("/v1/score", {"text_1": "hello", "text_2": ["a", "b"]}, ZIPPED),
    ],
)
def test_an_encoders_bodies_are_given_back_once_they_are_decoded(
    embedder: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: Mapping[str, Any], headers: dict[str, str]
) -> None:
    taken = watch(monkeypatch, find_budget(embedder), EncoderRunner, "infer")
    response = embedder.post(path, content=gzip.compress(orjson.dumps(body) + SPACES), headers=headers)
    assert response.status_code == 200, response.text
    assert len(taken) == 1
    assert taken[0] < 1000


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hello", "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 1}),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 1}),
        ("/v2/models/model/generate", {"text_input": "hello", "max_tokens": 1}),
        ("/v2/models/model/generate_stream", {"text_input": "hello", "max_tokens": 1}),
        ("/tokenize", {"prompt": "hello"}),
        ("/detokenize", {"tokens": [5, 6]}),
    ],
)
def test_a_generators_bodies_are_given_back_once_they_are_decoded(
    generator: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, body: Mapping[str, Any]
) -> None:
    taken = watch(monkeypatch, find_budget(generator), Admission, "admit")
    response = generator.post(path, content=gzip.compress(orjson.dumps(body) + SPACES), headers=ZIPPED)
    assert response.status_code == 200, response.text
    assert taken
    assert max(taken) < 1000


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ({"instances": ["a" * 500_000, "hello"]}, 500_000),
        ({"instances": ["hello"], "parameters": {"unknown": ["a" * 700_000]}}, 700_000),
        ({"instances": ["hello"], "unknown": "a" * 3_000_000}, 0),
    ],
    ids=["texts", "parameters", "what nobody reads"],
)
def test_what_was_made_of_a_body_is_counted_until_the_answer(
    embedder: TestClient, monkeypatch: pytest.MonkeyPatch, body: Mapping[str, Any], kept: int
) -> None:
    budget = find_budget(embedder)
    taken = watch(monkeypatch, budget, EncoderRunner, "infer")
    content = gzip.compress(orjson.dumps(body) + SPACES)
    assert embedder.post("/v1/models/model:predict", content=content, headers=ZIPPED).status_code == 200
    assert kept <= taken[0] < kept + 1000
    assert budget.left == budget.most


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/models/model:predict", {"instances": ["a"], "parameters": {"a": LONG}}, ZIPPED),
        ("/v1/models/model:predict", {"instances": ["a"], "parameters": {"a": [{LONG: 1}]}}, ZIPPED),
        ("/v1/models/model:predict", {**EVENT, "more": LONG, "data": {"instances": ["a"]}}, STRUCTURED),
        ("/v2/models/model/infer", {"inputs": [INPUT], "id": LONG}, ZIPPED),
        ("/v2/models/model/infer", {"inputs": [INPUT], "parameters": {"a": LONG}}, ZIPPED),
        ("/v2/models/model/infer", {"inputs": [{**INPUT, "parameters": {"a": LONG}}]}, ZIPPED),
        ("/v2/models/model/infer", {"inputs": [INPUT], "outputs": [{"name": LONG}]}, ZIPPED),
    ],
)
def test_what_an_encoder_would_keep_beside_the_texts(
    embedder: TestClient, path: str, body: Mapping[str, Any], headers: dict[str, str]
) -> None:
    response = embedder.post(path, content=gzip.compress(orjson.dumps(body)), headers=headers)
    assert response.status_code == 413, response.text
    assert "characters of parameters and names" in response.text
    assert "max_text_characters" in response.text


@pytest.mark.parametrize("more", [{"id": LONG}, {"parameters": {"stop": LONG}}])
def test_what_a_generator_would_keep_beside_the_text(generator: TestClient, more: Mapping[str, Any]) -> None:
    content = gzip.compress(orjson.dumps({"text_input": "a", **more}))
    response = generator.post("/v2/models/model/generate", content=content, headers=ZIPPED)
    assert response.status_code == 413, response.text
    assert "max_text_characters" in response.text


def test_a_tensor_does_not_keep_the_rest_of_its_body() -> None:
    tensor = {"name": "input_ids", "shape": [1, 2], "datatype": "INT64", "parameters": {"binary_data_size": 16}}
    head = orjson.dumps({"inputs": [tensor]}) + SPACES
    headers = {"inference-header-content-length": str(len(head))}
    _, call = _read(head + np.arange(2).tobytes(), headers, RequestLimits())
    memory: Any = call.inputs[0].flat
    assert isinstance(memory, np.ndarray)
    while not isinstance(memory, bytes):
        memory = memory.obj if isinstance(memory, memoryview) else memory.base
    assert len(memory) == 16


class _Struct(msgspec.Struct):
    name: str
    values: list[Any]


@dataclass(frozen=True)
class _Pair:
    one: Any
    other: Any


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (None, 0),
        ("abc", 3),
        (b"abc", 3),
        (1.5, 0),
        (np.zeros((2, 3), np.float32), 24),
        (["ab", ["c"]], 2 * 8 + 2 + 8 + 1),
        (("ab", 1), 2 * 8 + 2),
        ({"key": "value"}, 8 + 8),
        (_Struct("ab", ["c"]), 2 + 8 + 1),
        (_Pair(TextInput("ab", "c"), {"d": None}), 3 + 9),
    ],
)
def test_count_kept(value: object, count: int) -> None:
    assert count_kept(value) == count
