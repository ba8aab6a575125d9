"""Text Embeddings Inference's calls, as its clients send them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from starlette.testclient import TestClient
from transformers import pipeline

from tests.conftest import ModelFolder, Serve
from tests.families import MINILM

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 300]
PAIRS = [["A man eats.", "Somebody eats."], ["It rains."]]


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm", max_request_bytes=100_000).client


@pytest.fixture(scope="module")
def classifier(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


@pytest.fixture(scope="module")
def ranker(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_ranking")).client


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "truncate": True, "truncation_direction": "Right"},
        {"normalize": False, "prompt_name": None},
    ],
)
def test_embed(options: dict[str, Any], embedder: TestClient) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS, **options), expected, atol=1e-5)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS[0], **options), expected[:1], atol=1e-5)


def test_options_of_embed(embedder: TestClient, plain: Path, serve: Serve) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    expected = model.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS, dimensions=16), expected, atol=1e-5)
    np.testing.assert_allclose(
        post(embedder, "/embed", inputs=[[101, 7592, 2088, 102]]), model.encode(TEXTS[:1]), atol=1e-5
    )
    client, reference = serve(model_dir=plain).client, SentenceTransformer(str(plain), device="cpu")
    for normalize in (True, False):
        for prompt in (None, "query"):
            expected = reference.encode(TEXTS, prompt_name=prompt, normalize_embeddings=normalize)
            found = post(client, "/embed", inputs=TEXTS, normalize=normalize, prompt_name=prompt)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("direction", ["left", "Left", "LEFT"])
def test_the_end_of_a_text(direction: str, model_folder: ModelFolder, serve: Serve) -> None:
    bodies: dict[str, tuple[str, Any, Any]] = {
        "/embed": ("text_embedding", {"inputs": "x " * 600 + "y"}, {"inputs": "x " * 509 + "y"}),
        "/predict": ("sequence_classification", {"inputs": "x " * 600 + "y"}, {"inputs": "x " * 509 + "y"}),
        "/rerank": (
            "text_ranking",
            {"query": "a", "texts": ["x " * 600 + "y"]},
            {"query": "a", "texts": ["x " * 507 + "y"]},
        ),
    }
    for path, (task, body, kept) in bodies.items():
        client = serve(model_dir=model_folder("bert", task)).client
        assert post(client, path, **body, truncation_direction=direction) == post(client, path, **kept)


def test_truncate(model_folder: ModelFolder, serve: Serve) -> None:
    """False refuses what is too long, true cuts it, also where the operator would have it otherwise."""
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "/embed": ("text_embedding", {"inputs": TEXTS}),
        "/predict": ("sequence_classification", {"inputs": [[text] for text in TEXTS]}),
        "/rerank": ("text_ranking", {"query": "x", "texts": TEXTS}),
    }
    for path, (task, body) in bodies.items():
        client, strict = (
            serve(model_dir=model_folder("bert", task), truncation=usual).client for usual in (True, False)
        )
        expected = post(client, path, **body)
        assert post(client, path, **body, truncate=True) == post(strict, path, **body, truncate=True) == expected
        for response in (client.post(path, json={**body, "truncate": False}), strict.post(path, json=body)):
            assert (response.status_code, response.json()["error_type"]) == (400, "Validation")
            assert response.json()["error"].startswith("text 2 cannot be served: it has 90")


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
def test_predict(raw_scores: bool, problem_type: str | None, model_folder: ModelFolder, serve: Serve) -> None:
    more = {} if problem_type is None else {"problem_type": problem_type}
    folder = model_folder("bert", "sequence_classification", **more)
    function: dict[str, Any] = {"function_to_apply": "none"} if raw_scores else {}
    reference: Any = pipeline("text-classification", model=str(folder), top_k=None, **function)
    given = [{"text": text, "text_pair": pair} for text, pair in PAIRS[:1]] + [{"text": PAIRS[1][0]}]
    expected = [reference(each) for each in given]
    # What the operator asks of the other protocols leaves nothing out here.
    client = serve(model_dir=folder, top_k=1, threshold=0.9).client
    found = post(client, "/predict", inputs=PAIRS, raw_scores=raw_scores)
    for one, wanted in zip(found, expected, strict=True):
        assert [each["label"] for each in one] == [each["label"] for each in wanted]
        np.testing.assert_allclose([each["score"] for each in one], [each["score"] for each in wanted], atol=1e-5)
    for inputs, index in ((PAIRS[0], 0), (PAIRS[1], 1), (PAIRS[1][0], 1)):
        single = post(client, "/predict", inputs=inputs, raw_scores=raw_scores)
        assert [each["label"] for each in single] == [each["label"] for each in found[index]]


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("return_text", [False, True])
@pytest.mark.parametrize("activation", ["activation.Sigmoid", "linear.Identity"])
def test_rerank(raw_scores: bool, return_text: bool, activation: str, model_folder: ModelFolder, serve: Serve) -> None:
    """Its scores are sigmoids whatever the model's files say."""
    named = {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{activation}"}}
    folder = model_folder("bert", "text_ranking", **named)
    function = torch.nn.Identity() if raw_scores else torch.nn.Sigmoid()
    expected = CrossEncoder(str(folder), device="cpu", activation_fn=function).predict(
        [("hello", text) for text in TEXTS]
    )
    found = post(
        serve(model_dir=folder).client,
        "/rerank",
        query="hello",
        texts=TEXTS,
        raw_scores=raw_scores,
        return_text=return_text,
    )
    assert [each["index"] for each in found] == np.argsort(-expected, kind="stable").tolist()
    for each in found:
        assert each["score"] == pytest.approx(expected[each["index"]], abs=1e-5)
        assert each.get("text") == (TEXTS[each["index"]] if return_text else None)


def test_predict_of_a_model_that_ranks(ranker: TestClient) -> None:
    [ranked] = post(ranker, "/rerank", query="hello", texts=["world"])
    assert post(ranker, "/predict", inputs=["hello", "world"]) == [{"score": ranked["score"], "label": "LABEL_0"}]


FORMS = (
    "inputs must be a text, a pair [text, text], or a list of lists that have one text or two: "
    "[[text], [text, text], ...]"
)


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/embed", "{", 400, "the body is not valid JSON: Input data was truncated"),
        ("/embed", {}, 400, "the body is not as expected: Object missing required field `inputs`"),
        ("/embed", {"inputs": []}, 400, "inputs must be a text, token ids, or a list of either, and not empty"),
        ("/embed", {"inputs": ""}, 400, "inputs is empty; give at least a character or a token"),
        ("/embed", {"inputs": ["x", ""]}, 400, "inputs[1] is empty; give at least a character or a token"),
        ("/embed", {"inputs": "x", "dimensions": 999}, 400, "dimensions is 999; the model's vectors have 384"),
        ("/embed", {"inputs": "x", "prompt_name": "no"}, 400, "there is no prompt 'no': the model has none"),
        ("/embed", {"inputs": "x", "truncation_direction": "top"}, 400,
         "truncation_direction must be Left or Right, not 'top'"),
        ("/embed", {"inputs": "x" * 100_000}, 413, "the body has 100014 bytes; at most 100000 are allowed"),
        ("/predict", {"inputs": "x"}, 400, "minilm does not serve /predict: it serves text_embedding at "
         "/v1/models/minilm:predict, /v2/models/minilm/infer, /v1/embeddings, /v1/rerank, /v1/score, /v1/pooling"),
        ("/rerank", {"query": "x", "texts": ["y"]}, 400, "minilm does not serve /rerank: it serves text_embedding at "
         "/v1/models/minilm:predict, /v2/models/minilm/infer, /v1/embeddings, /v1/rerank, /v1/score, /v1/pooling"),
    ],
)  # fmt: skip
def test_errors(path: str, body: Any, status: int, message: str, embedder: TestClient) -> None:
    check_error(embedder, path, body, status, message)


@pytest.mark.parametrize("inputs", [[], ["a", "b", "c"], [[]], [["a", "b", "c"]], [["a"], "b"], ["a", ["b"]]])
def test_forms_of_predict(inputs: Any, classifier: TestClient) -> None:
    check_error(classifier, "/predict", {"inputs": inputs}, 400, FORMS)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "x", "texts": []}, "texts is empty; give at least one"),
        ({"query": "x", "texts": [1]}, "the body is not as expected: Expected `str`, got `int` - at `$.texts[0]`"),
    ],
)
def test_errors_of_rerank(body: Any, message: str, ranker: TestClient) -> None:
    check_error(ranker, "/rerank", body, 400, message)


def check_error(client: TestClient, path: str, body: Any, status: int, message: str) -> None:
    response = client.post(path, content=body if isinstance(body, str) else json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"error": message, "error_type": "Validation"})


def test_other_methods(ranker: TestClient) -> None:
    response = ranker.get("/rerank")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == "GET is not allowed on /rerank; allowed: POST"


def test_overload(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "text_ranking"), max_concurrent_requests=1)
    # A request that is under way for as long as the test wants.
    served.runner._model().queue.admission.requests = 1
    response = served.client.post("/rerank", json={"query": "x", "texts": ["y"]})
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    assert int(response.headers["retry-after"]) >= 1
