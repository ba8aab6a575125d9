"""Every answer and event is as OpenAI's types say: all required fields are there, none has another type.

The client itself does not check what it reads.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pydantic
import pytest
from openai.types import Completion, CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.shared import ErrorObject
from starlette.testclient import TestClient

from tests.conftest import Serve
from tests.families import MINILM
from tests.protocol.openai.replies import read_events

HELLO = [{"role": "user", "content": "hello"}]
SHORT: dict[str, Any] = {"max_tokens": 3, "seed": 1}
CALL: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "tool_choice": "required", "max_tokens": 100, "seed": 1,
}  # fmt: skip
# What each path answers with, and the requests.
ANSWERS: list[tuple[str, Any, list[dict[str, Any]]]] = [
    (
        "completions", Completion,
        [
            {"prompt": "a", "echo": True, **SHORT}, {"prompt": ["a", "b"], "n": 2, "logprobs": 2, **SHORT},
            {"prompt": "a", "stop": "a", "max_tokens": 30, "temperature": 0},
        ],
    ),
    (
        "chat/completions", ChatCompletion,
        [
            {"messages": HELLO, **SHORT}, {"messages": HELLO, "logprobs": True, "top_logprobs": 2, **SHORT},
            {"messages": HELLO, **CALL},
        ],
    ),
    (
        "responses", Response,
        [
            {"input": "hello", "max_output_tokens": 3},
            {
                "input": HELLO, "instructions": "x", "max_output_tokens": 3, "temperature": 0.5, "metadata": {"a": "b"},
                "include": ["message.output_text.logprobs"], "top_logprobs": 2,
            },
        ],
    ),
]  # fmt: skip
STREAMED = {"completions": Completion, "chat/completions": ChatCompletionChunk, "responses": ResponseStreamEvent}


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm").client


def check(kind: Any, answer: Any) -> None:
    """Whether an answer is of a type; strictly, so that "1" is no number."""
    adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(kind)
    adapter.validate_json(json.dumps(answer), strict=True)


@pytest.mark.parametrize(("path", "kind", "bodies"), ANSWERS, ids=STREAMED)
def test_answers(path: str, kind: Any, bodies: list[dict[str, Any]], http: TestClient) -> None:
    for body in bodies:
        response = http.post(f"/v1/{path}", json={"model": "llama", **body})
        assert response.status_code == 200, response.text
        check(kind, response.json())


@pytest.mark.parametrize(("path", "kind", "bodies"), ANSWERS, ids=STREAMED)
def test_events(path: str, kind: Any, bodies: list[dict[str, Any]], http: TestClient) -> None:
    for body in bodies:
        response = http.post(f"/v1/{path}", json={"model": "llama", **body, "stream": True})
        events = read_named(response.text) if path == "responses" else read_events(response.text)
        assert events
        for event in events:
            if path == "completions":
                # The type has no null here, which OpenAI itself sends.
                assert all("finish_reason" in choice for choice in event["choices"])
                event["choices"] = [
                    {**each, "finish_reason": each["finish_reason"] or "stop"} for each in event["choices"]
                ]
            check(STREAMED[path], event)


def read_named(text: str) -> list[dict[str, Any]]:
    """The events of a stream whose events have names, which their data repeats."""
    events = []
    for lines in text.strip().split("\n\n"):
        name, data = (line.partition(": ")[2] for line in lines.split("\n"))
        events.append(json.loads(data))
        assert events[-1]["type"] == name
    return events


@pytest.mark.parametrize(
    ("path", "prompt"), [("completions", {"prompt": "a"}), ("chat/completions", {"messages": HELLO})]
)
@pytest.mark.parametrize("options", [None, {"include_usage": True}])
def test_usage_of_a_stream(path: str, prompt: dict[str, Any], options: Any, http: TestClient) -> None:
    """With `include_usage` every chunk has the field, and the last one its value."""
    body = {**prompt, **SHORT, "stream": True, "stream_options": options}
    *chunks, last = read_events(http.post(f"/v1/{path}", json=body).text)
    assert {"usage" in chunk for chunk in chunks} == {options is not None}
    assert not any(chunk.get("usage") for chunk in chunks)
    assert bool(last.get("usage")) == (options is not None)


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"dimensions": 2}])
def test_embeddings(encoding: dict[str, Any], embedder: TestClient) -> None:
    check(CreateEmbeddingResponse, embedder.post("/v1/embeddings", json={"input": ["a", "b"], **encoding}).json())


@pytest.mark.parametrize("client", ["http", "embedder"])
@pytest.mark.parametrize("path", ["/v1/models", "/openai/v1/models", "/models"])
def test_models(client: str, path: str, request: pytest.FixtureRequest) -> None:
    served: TestClient = request.getfixturevalue(client)
    listed = served.get(path).json()
    assert listed["object"] == "list"
    for card in listed["data"]:
        check(Model, card)
        check(Model, served.get(f"/openai/v1/models/{card['id']}").json())
        assert card["max_model_len"] in (256, 1024)


@pytest.mark.slow
def test_models_for_vllms_clients(http: TestClient) -> None:
    protocol = pytest.importorskip("vllm.entrypoints.serve.engine.protocol")
    check(protocol.ModelList, http.get("/v1/models").json())


Send = Callable[[TestClient], Any]
ERRORS: list[Send] = [
    lambda client: client.post("/v1/embeddings", json={"input": ""}),
    lambda client: client.post("/v1/embeddings", json={"input": "a", "model": "nobody"}),
    lambda client: client.post("/v1/completions", json={"prompt": "a"}),
    lambda client: client.post("/v1/rerank", content="{"),
    lambda client: client.post("/v1/embeddings", content="a", headers={"content-type": "text/plain"}),
    lambda client: client.get("/v1/embeddings"),
    lambda client: client.get("/openai/v1/models/nobody"),
    lambda client: client.get("/openai/v1/nothing"),
]


@pytest.mark.parametrize("send", ERRORS)
def test_errors(send: Send, embedder: TestClient) -> None:
    response = send(embedder)
    assert response.status_code >= 400
    error = response.json()["error"]
    check(ErrorObject, error)
    assert {*error} == {"message", "type", "param", "code"}
