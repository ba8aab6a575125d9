"""BentoML's methods over HTTP: what is refused, keys and records."""

from __future__ import annotations

from typing import Any

import pytest

from protocol.bentoml_api.methods import METHODS
from runners.core.request_record import RequestRecord
from tests.protocol.bentoml_api.conftest import ServeMethod

EMPTY = "is empty; give at least one"
CALLS: dict[str, dict[str, Any]] = {
    "classify": {"texts": ["a"]},
    "classify_tokens": {"texts": ["a"]},
    "classify_zero_shot": {"texts": ["a"], "candidate_labels": ["b"]},
    "fill_mask": {"texts": ["[MASK]"]},
    "answer": {"questions": ["a"], "contexts": ["b"]},
    "embed": {"texts": ["a"]},
    "embed_sparse": {"texts": ["a"]},
    "rank": {"query": "a", "texts": ["b"]},
    "generate": {"prompt": "a", "max_tokens": 1},
    "chat": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1},
}


@pytest.mark.parametrize(
    ("method", "body", "message"),
    [
        ("classify", {}, "the body is not as expected: Object missing required field `texts`"),
        ("classify", {"texts": "a"}, "the body is not as expected: Expected `array`, got `str` - at `$.texts`"),
        ("classify", {"texts": ["a", 1]}, "the body is not as expected: Expected `str`, got `int` - at `$.texts[1]`"),
        ("classify", {"texts": ["a"], "topk": 1}, "the body is not as expected: Object contains unknown field `topk`"),
        ("classify", {"texts": ["a"], "labels": True}, "the body is not as expected: Object contains unknown field `labels`"),
        ("classify", {"texts": []}, f"texts {EMPTY}"),
        ("classify", {"texts": ["a"], "text_pairs": []}, "texts has 1 texts, but text_pairs has 0: give as many"),
        ("classify", {"texts": ["a"], "top_k": "1"}, "the body is not as expected: Expected `int | null`, got `str` - at `$.top_k`"),
        ("classify", {"texts": ["a"], "threshold": 2}, "the body is not as expected: Expected `float` <= 1.0 - at `$.threshold`"),
        ("classify", {"texts": ["a"], "top_k": 1001}, "1001 answers (top_k) are more than the 1000 that --max_top_k allows"),
        ("classify", {"texts": ["a"] * 9}, "9 texts are more than the 8 that --max_client_batch_size allows"),
        ("classify", {"texts": ["a" * 101]}, "101 characters of a text are more than the 100 that --max_text_characters allows"),
        ("classify_zero_shot", {"texts": ["a"], "candidate_labels": []}, f"candidate_labels {EMPTY}"),
        ("classify_zero_shot", {"texts": ["a"], "candidate_labels": ["a", ""]}, "the parameter candidate_labels is wrong: a name must not be empty"),
        ("answer", {"questions": ["a"], "contexts": ["a", "b"]}, "questions has 1 texts, but contexts has 2: give as many"),
        ("rank", {"query": "a", "texts": []}, f"texts {EMPTY}"),
        ("generate", {"prompt": "a", "max_tokens": -1}, "the body is not as expected: Expected `int` >= 0 - at `$.max_tokens`"),
        ("generate", {"prompt": "a", "n": 2}, "the body is not as expected: Object contains unknown field `n`"),
        ("chat", {"messages": []}, f"messages {EMPTY}"),
        ("chat", {"messages": [{"role": "user"}]}, "the body is not as expected: Object missing required field `content` - at `$.messages[0]`"),
        ("chat", {"messages": [{"role": "robot", "content": ""}]}, "the chat template refuses the messages: no robots"),
        ("chat", {"messages": [{"role": "user", "content": ""}] * 4}, "4 messages are more than the 3 that --max_messages allows"),
    ],
)  # fmt: skip
def test_refusals(method: str, body: dict[str, Any], message: str, serve_method: ServeMethod) -> None:
    limits = {"max_client_batch_size": 8, "max_text_characters": 100, "max_messages": 3}
    response = serve_method(method, **limits).client.post(METHODS[method].path, json=body)
    assert response.json() == {"error": message}
    assert response.status_code == (413 if "are more than" in message else 400)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_that_no_model_answers(method: str, serve_method: ServeMethod) -> None:
    """It is refused before its body is read, and the model's task is named."""
    task, other = ("fill_mask", "fill_mask") if method != "fill_mask" else ("text_embedding", "embed")
    response = serve_method(other).client.post(METHODS[method].path, content=b"{")
    assert response.status_code == 400
    assert response.json()["error"].startswith(f"model does not serve {METHODS[method].path}: it serves {task} at ")


def test_every_method_is_called_here() -> None:
    assert CALLS.keys() == METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_keys_and_records(method: str, serve_method: ServeMethod, ended: list[RequestRecord]) -> None:
    client = serve_method(method, api_key="secret").client
    path = METHODS[method].path
    assert client.post(path, json=CALLS[method]).status_code == 401
    answer = client.post(path, json=CALLS[method], headers={"authorization": "Bearer secret"})
    assert answer.status_code == 200, answer.text
    refused, record = ended
    assert refused.refusal == "unauthorized"
    assert (record.protocol, record.route, record.status, record.texts) == ("bentoml", path, "200", 1)


def test_a_large_answer_is_compressed(serve_method: ServeMethod) -> None:
    client = serve_method("embed").client
    answer = client.post("/bentoml/embed", json={"texts": ["a"] * 8}, headers={"accept-encoding": "gzip"})
    assert (answer.headers["content-encoding"], len(answer.json())) == ("gzip", 8)


def test_other_methods_and_types(serve_method: ServeMethod) -> None:
    client = serve_method("classify").client
    assert client.get("/bentoml/classify").status_code == 405
    assert client.get("/bentoml/nothing").status_code == 404
    pickled = client.post("/bentoml/classify", content=b"x", headers={"content-type": "application/vnd.bentoml+pickle"})
    assert (pickled.status_code, pickled.json()["error"]) == (
        415, "the content type application/vnd.bentoml+pickle is not supported; send application/json"
    )  # fmt: skip
