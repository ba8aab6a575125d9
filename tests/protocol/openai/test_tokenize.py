"""vLLM's /tokenize and /detokenize, against the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from protocol.openai.chats import ChatRequest, Templated
from protocol.openai.tokenize import TokenizeChatRequest
from runners.core.task import GENERATION, Task
from tests.conftest import ModelFolder, Serve

ENCODER_TASKS = [task for task in Task if task not in GENERATION]
TEXT = "Return the value"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def tokenizer(chat_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(chat_folder)


@pytest.mark.parametrize("path", ["/tokenize", "/openai/tokenize"])
@pytest.mark.parametrize("special", [True, False])
def test_a_text(http: TestClient, tokenizer: Any, path: str, special: bool) -> None:
    ids = tokenizer(TEXT, add_special_tokens=special).input_ids
    body = {"model": "llama", "prompt": TEXT, "add_special_tokens": special, "return_token_strs": True}
    assert http.post(path, json=body).json() == {
        "count": len(ids), "max_model_len": 1024, "tokens": ids, "token_strs": tokenizer.convert_ids_to_tokens(ids),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("given", "text"),
    [({}, "<user>hello<assistant>"), ({"add_generation_prompt": False}, "<user>hello"),
     ({"chat_template_kwargs": {"mood": "glad"}}, "<user>hello(glad)<assistant>")],
)  # fmt: skip
def test_a_chat(http: TestClient, tokenizer: Any, given: dict[str, Any], text: str) -> None:
    answer = http.post("/tokenize", json={"messages": HELLO, **given}).json()
    assert answer["tokens"] == tokenizer(text, add_special_tokens=False).input_ids
    assert (answer["count"], answer["token_strs"]) == (len(answer["tokens"]), None)


@pytest.mark.parametrize("path", ["/detokenize", "/openai/detokenize"])
def test_the_text_of_tokens(http: TestClient, tokenizer: Any, path: str) -> None:
    ids = tokenizer(TEXT).input_ids
    assert http.post(path, json={"tokens": ids}).json() == {"prompt": tokenizer.decode(ids)}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/tokenize", {}, 400, "the body must have prompt or messages or inputs"),
        ("/tokenize", {"prompt": [1]}, 400, "the body is not as expected: Expected `str`, got `array`"),
        (
            "/tokenize",
            {"prompt": "a", "model": "nope"},
            404,
            "Model with name nope does not exist. This server has llama.",
        ),
        ("/tokenize", {"messages": []}, 400, "the body is not as expected: Expected `array` of length >= 1"),
        ("/tokenize", {"messages": HELLO, "chat_template": "x"}, 400, "this server does not take chat templates"),
        ("/detokenize", {"tokens": [-1]}, 400, "the body is not as expected: Expected `int` >= 0"),
        (
            "/detokenize",
            {"tokens": [10**9]},
            400,
            "text 0 cannot be served: there is no token 1000000000: the vocabulary ends at",
        ),
    ],
)
def test_what_is_refused(http: TestClient, path: str, body: dict[str, Any], status: int, message: str) -> None:
    response = http.post(path, json=body)
    assert response.status_code == status
    assert response.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize("task", ENCODER_TASKS)
def test_every_encoder_tokenizes(task: Task, model_folder: ModelFolder, serve: Serve) -> None:
    config = {"text_ranking": {"num_labels": 1}, "zero_shot_classification": {}}.get(task, {})
    folder = model_folder("bert", task, **config)
    client, tokenizer = serve(model_dir=folder).client, AutoTokenizer.from_pretrained(folder)
    for special in (True, False):
        ids = tokenizer(TEXT, add_special_tokens=special).input_ids
        answer = client.post("/tokenize", json={"prompt": TEXT, "add_special_tokens": special}).json()
        assert (answer["tokens"], answer["count"], answer["token_strs"]) == (ids, len(ids), None)
        assert client.post("/openai/detokenize", json={"tokens": ids}).json() == {"prompt": tokenizer.decode(ids)}
    assert answer["max_model_len"] == int(client.get("/v2/models/model").json()["properties"]["max_length"])
    named = client.post("/openai/tokenize", json={"prompt": TEXT, "return_token_strs": True}).json()
    assert named["token_strs"] == tokenizer.convert_ids_to_tokens(named["tokens"])
    refused = client.post("/tokenize", json={"messages": HELLO})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")


def test_many_tokens(model_folder: ModelFolder, serve: Serve) -> None:
    """More than are rendered on the event loop."""
    folder = model_folder("bert", Task.FILL_MASK)
    text = "value " * 20_000
    answer = serve(model_dir=folder).client.post("/tokenize", json={"prompt": text, "return_token_strs": True}).json()
    assert answer["tokens"] == AutoTokenizer.from_pretrained(folder)(text).input_ids
    assert len(answer["token_strs"]) == answer["count"] > 10_000


@pytest.mark.parametrize("name", Templated.__annotations__)
def test_both_bodies_declare_a_field_of_templates_alike(name: str) -> None:
    [in_chats], [in_tokenize] = (
        [(field.type, field.default) for field in msgspec.structs.fields(body) if field.name == name]
        for body in (ChatRequest, TokenizeChatRequest)
    )
    assert in_chats == in_tokenize
