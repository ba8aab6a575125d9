"""vLLM's classify on this server's own engine, against `transformers`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from starlette.testclient import TestClient
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from runners.core.task import Task
from tests.conftest import ModelFolder, Serve
from tests.families import name_classes

TEXTS = ["Hello world", "a long text " * 300, "Serve Hugging Face models"]
NAMES = ["negative", "mixed", "pósitive", "other:", "calm"]
PATHS = ["/v1/classify", "/classify", "/openai/v1/classify", "/openai/classify"]


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "sequence_classification", **name_classes(NAMES))


@pytest.fixture(scope="module")
def http(folder: Path, serve: Serve) -> TestClient:
    # What the operator sets for other protocols changes nothing.
    return serve(model_dir=folder, model_name="mood", top_k=1, return_probabilities=True).client


def post(client: TestClient, path: str, body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", PATHS)
def test_an_answer(path: str, http: TestClient, folder: Path) -> None:
    answer = post(http, path, {"model": "mood", "input": TEXTS, "request_id": "7", "user": "me"})
    tokens = sum(min(len(AutoTokenizer.from_pretrained(folder)(text).input_ids), 512) for text in TEXTS)
    head = {name: answer[name] for name in ("id", "object", "model", "usage")}
    assert head == {
        "id": "classify-7", "object": "list", "model": "mood",
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }  # fmt: skip
    classify: Any = pipeline("text-classification", str(folder), device="cpu")
    for index, (each, text) in enumerate(zip(answer["data"], TEXTS, strict=True)):
        expected = {score["label"]: score["score"] for score in classify(text, top_k=None, truncation=True)}
        assert (each["index"], each["num_classes"]) == (index, len(NAMES))
        assert each["label"] == max(expected, key=expected.__getitem__)
        np.testing.assert_allclose(each["probs"], [expected[name] for name in NAMES], atol=1e-5)


def test_logits(http: TestClient, folder: Path) -> None:
    [found] = post(http, "/v1/classify", {"input": TEXTS[0], "use_activation": False})["data"]
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        [expected] = model(**AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")).logits
    np.testing.assert_allclose(found["probs"], expected, atol=1e-5)
    assert found["label"] == NAMES[int(expected.argmax())]


def test_token_ids(http: TestClient, folder: Path) -> None:
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[0]).input_ids
    of_text, of_ids = (post(http, "/v1/classify", {"input": given})["data"] for given in (TEXTS[0], ids))
    np.testing.assert_allclose(of_ids[0]["probs"], of_text[0]["probs"], atol=1e-6)


def test_truncation_wins_over_what_the_operator_says(folder: Path, serve: Serve) -> None:
    client = serve(model_dir=folder, stride=16).client
    ids = AutoTokenizer.from_pretrained(folder)(TEXTS[1], truncation=True, max_length=20).input_ids
    cut, kept = (
        post(client, "/v1/classify", body)
        for body in ({"input": TEXTS[1], "truncate_prompt_tokens": 20}, {"input": ids})
    )
    assert cut["usage"] == {"prompt_tokens": 20, "total_tokens": 20}
    np.testing.assert_allclose(cut["data"][0]["probs"], kept["data"][0]["probs"], atol=1e-6)
    assert post(client, "/v1/classify", {"input": TEXTS[1]})["usage"]["prompt_tokens"] > 512


def test_a_cross_encoder_scores_a_text_as_it_scores_a_pair(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("bert", Task.TEXT_RANKING, num_labels=1)
    client = serve(model_dir=folder).client
    [found] = post(client, "/v1/classify", {"input": TEXTS[0]})["data"]
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        logit = model(**AutoTokenizer.from_pretrained(folder)(TEXTS[0], return_tensors="pt")).logits[0]
    np.testing.assert_allclose(found["probs"], CrossEncoder(str(folder), device="cpu").activation_fn(logit), atol=1e-5)
    assert (found["num_classes"], found["label"]) == (1, "LABEL_0")


def test_many_texts(http: TestClient) -> None:
    """More than are rendered on the event loop."""
    texts = [f"text {number % 7}" for number in range(1500)]
    data = post(http, "/v1/classify", {"input": texts})["data"]
    assert [each["index"] for each in data] == [*range(1500)]
    np.testing.assert_allclose(data[1493]["probs"], data[2]["probs"], atol=1e-6)


@pytest.mark.parametrize(
    ("body", "status", "param", "message"),
    [
        ({}, 400, "input", "missing required field `input`"),
        ({"input": []}, 400, "input", "input must be a text, token ids, or a list of either, and not empty"),
        ({"input": "a", "model": "nope"}, 404, "model", "Model with name nope does not exist"),
        ({"messages": []}, 400, "messages", "messages is not supported here"),
        ({"input": "a", "priority": 1}, 400, "priority", "where vLLM runs the model; allowed: 0"),
        ({"input": "a", "use_activation": "no"}, 400, "use_activation", "Expected `bool | null`"),
        ({"input": "a", "normalize": False}, 400, "normalize", "normalize is not supported here; use use_activation"),
        ({"input": "a", "truncate_prompt_tokens": 513}, 400, "truncate_prompt_tokens", "it can be -1, or 1 to 512"),
    ],
)
def test_errors(http: TestClient, body: Any, status: int, param: str, message: str) -> None:
    response = http.post("/v1/classify", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert message in error["message"]


def test_another_task(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "token_classification")).client
    response = client.post("/v1/classify", json={"input": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("model does not serve /v1/classify: it serves")
    assert client.get("/classify").status_code == 405


def test_a_key(folder: Path, serve: Serve) -> None:
    client = serve(model_dir=folder, api_key="secret").client
    for path in PATHS:
        assert client.post(path, json={"input": "a"}).status_code == 401
        assert client.post(path, json={"input": "a"}, headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize("raw_scores", [False, True])
def test_infinity(raw_scores: bool, model_folder: ModelFolder, serve: Serve) -> None:
    """All classes, best first, in the form of Infinity's client; tests/test_ranking_clients.py has it."""
    folder = model_folder("bert", "sequence_classification")
    function: dict[str, Any] = {"function_to_apply": "none"} if raw_scores else {}
    expected: Any = pipeline("text-classification", model=str(folder), top_k=None, **function)(["hello", "world"])
    body = {"input": ["hello", "world"], "raw_scores": raw_scores, "model": "default/not-specified"}
    answer = serve(model_dir=folder).client.post("/classify", json=body).json()
    assert (answer["object"], answer["model"]) == ("classify", "model")
    for found, wanted in zip(answer["data"], expected, strict=True):
        assert [each["label"] for each in found] == [each["label"] for each in wanted]
        np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)
