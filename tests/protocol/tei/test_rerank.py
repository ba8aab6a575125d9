"""Text Embeddings Inference's ranking, against cross-encoders of sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve
from tests.protocol.tei.conftest import CheckError, Post

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 300]


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("return_text", [False, True])
@pytest.mark.parametrize("activation", ["activation.Sigmoid", "linear.Identity"])
def test_rerank(
    raw_scores: bool, return_text: bool, activation: str, model_folder: ModelFolder, serve: Serve, post: Post
) -> None:
    """Its scores are sigmoids whatever the model's files say."""
    named = {"sentence_transformers": {"activation_fn": f"torch.nn.modules.{activation}"}}
    folder = model_folder("bert", "text_ranking", **named)
    function = torch.nn.Identity() if raw_scores else torch.nn.Sigmoid()
    expected = CrossEncoder(str(folder), device="cpu", activation_fn=function).predict(
        [("hello", text) for text in TEXTS]
    )
    body = {"query": "hello", "texts": TEXTS, "raw_scores": raw_scores, "return_text": return_text}
    found = post(serve(model_dir=folder).client, "/rerank", **body)
    assert [each["index"] for each in found] == np.argsort(-expected, kind="stable").tolist()
    for each in found:
        assert each["score"] == pytest.approx(expected[each["index"]], abs=1e-5)
        assert each.get("text") == (TEXTS[each["index"]] if return_text else None)
    client = serve(model_dir=folder).client
    assert post(client, "/rerank", **body, top_n=2) == found[:2]
    assert post(client, "/rerank", **body, top_n=0) == found


def test_empty_texts(model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    """A pair may have one, as in that server."""
    folder = model_folder("bert", "text_ranking")
    client, model = serve(model_dir=folder).client, CrossEncoder(str(folder), device="cpu")
    for query, text in (("hello", ""), ("", "hello")):
        [ranked] = post(client, "/rerank", query=query, texts=[text])
        assert ranked["score"] == pytest.approx(float(model.predict([(query, text)])[0]), abs=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "message", "kind"),
    [
        ({"query": "x", "texts": []}, 400, "texts is empty; give at least one", "Empty"),
        ({"query": "", "texts": ["x", ""]}, 400,
         "query and one of the texts are empty; give at least a character", "Empty"),
        ({"query": "x", "texts": [1]}, 422,
         "the body is not as expected: Expected `str`, got `int` - at `$.texts[0]`", "Validation"),
        ({"texts": ["x"]}, 422, "the body is not as expected: Object missing required field `query`", "Validation"),
        ({"query": "x"}, 422, "the body must have texts or documents", "Validation"),
        ({"query": "x", "texts": ["x"] * 4097}, 413,
         "4097 texts are more than the 4096 that --max_client_batch_size allows", "Validation"),
    ],
)  # fmt: skip
def test_errors(body: Any, status: int, message: str, kind: str, ranker: TestClient, check_error: CheckError) -> None:
    check_error(ranker, "/rerank", body, status, message, kind)


def test_other_methods(embedder: TestClient) -> None:
    response = embedder.get("/embed")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"] == "GET is not allowed on /embed; allowed: POST"


def test_overload(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "text_ranking"), max_concurrent_requests=1)
    # A request that is under way for as long as the test wants.
    served.runner._model().queue.admission.requests = 1
    response = served.client.post("/rerank", json={"query": "x", "texts": ["y"]})
    assert (response.status_code, response.json()["error_type"]) == (429, "Overloaded")
    assert int(response.headers["retry-after"]) >= 1
