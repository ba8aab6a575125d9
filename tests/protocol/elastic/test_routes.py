"""Elasticsearch's ranking, as its service writes and reads it, against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from starlette.testclient import TestClient

from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import ModelFolder, Serve
from tests.families import MINILM

QUERY = "Where do pandas live?"
DOCUMENTS = ["Rome is in Italy.", "The panda lives in China.", "a long text " * 300]


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "text_ranking")


@pytest.fixture(scope="module")
def ranker(folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=folder, max_client_batch_size=32).client


def read_entity(answer: Any) -> list[tuple[int, float, str | None]]:
    """As HuggingFaceRerankResponseEntity reads an answer: it refuses any other field."""
    assert isinstance(answer, list)
    for each in answer:
        assert {*each} <= {"index", "score", "text"}
    return [(each["index"], each["score"], each.get("text")) for each in answer]


@pytest.mark.parametrize(
    "settings", [{}, {"return_documents": True}, {"return_documents": False, "top_n": 2, "max_chunks_per_doc": 1}]
)
def test_a_ranking(settings: dict[str, Any], ranker: TestClient, folder: Path) -> None:
    body = {"documents": DOCUMENTS, "query": QUERY, **settings}
    found = read_entity(ranker.post("/", json=body).json())
    expected = CrossEncoder(str(folder), device="cpu").predict([(QUERY, text) for text in DOCUMENTS])
    assert [index for index, _, _ in found] == np.argsort(-expected, kind="stable").tolist()[: settings.get("top_n")]
    for index, score, text in found:
        assert score == pytest.approx(expected[index], abs=1e-5)
        assert text == (DOCUMENTS[index] if settings.get("return_documents") else None)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"documents": DOCUMENTS}, 400, "the body is not as expected: Object missing required field `query`"),
        ({"documents": [], "query": "x"}, 400,
         "the body is not as expected: Expected `array` of length >= 1 - at `$.documents`"),
        ({"documents": ["x"], "query": "x", "top_k": 5}, 400,
         "the body is not as expected: Object contains unknown field `top_k`"),
        ({"documents": ["x"], "query": "x", "max_chunks_per_doc": 5}, 400,
         "the body is not as expected: Invalid enum value 5 - at `$.max_chunks_per_doc`"),
        ({"documents": ["x"] * 33, "query": "x"}, 413,
         "33 documents are more than the 32 that --max_client_batch_size allows"),
    ],
)  # fmt: skip
def test_errors(body: dict[str, Any], status: int, message: str, ranker: TestClient) -> None:
    """The service reads `error` as a text."""
    response = ranker.post("/", content=json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"error": message, "error_type": "validation"})


def test_a_model_that_embeds_does_not_rank_here(serve: Serve) -> None:
    client = serve(model_dir=MINILM, model_name="minilm").client
    refused = client.post("/", json={"documents": ["x"], "query": "x"})
    assert (refused.status_code, refused.json()["error"][:25]) == (400, "minilm does not serve /: ")
    assert client.post("/", json={"inputs": "x"}).status_code == 200


def test_records(ranker: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    ranker.post("/", json={"documents": DOCUMENTS, "query": QUERY})
    remove_observer(records.append)
    assert [(each.protocol, each.route, each.model_name, each.texts) for each in records] == [
        ("elastic", "/", "model", 3)
    ]
