"""Reranking and scoring on this server's own engine, against sentence-transformers on the same texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer
from starlette.testclient import TestClient
from transformers import AutoTokenizer

from tests.conftest import ModelFolder, Serve
from tests.families import MINILM

QUERY = "Where do pandas live?"
DOCUMENTS = ["Rome is in Italy.", "The panda lives in China.", "", "a long text " * 300, "Rome is in Italy."]
RERANK_PATHS = ["/v1/rerank", "/openai/v1/rerank", "/openai/rerank", "/openai/v2/rerank", "/v2/rerank"]
SCORE_PATHS = ["/v1/score", "/openai/v1/score", "/openai/score", "/score"]


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "text_ranking")


@pytest.fixture(scope="module")
def http(folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=folder, max_request_bytes=100_000).client


@pytest.fixture(scope="module")
def expected(folder: Path) -> list[float]:
    scores: list[float] = (
        CrossEncoder(str(folder), device="cpu").predict([(QUERY, text) for text in DOCUMENTS]).tolist()
    )
    return scores


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm").client


def post(client: TestClient, path: str, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("path", [*RERANK_PATHS, "/rerank"])
def test_rerank(path: str, http: TestClient, folder: Path, expected: list[float]) -> None:
    answer = post(http, path, model="model", query=QUERY, documents=DOCUMENTS)
    assert list(answer) == ["id", "model", "usage", "results"]
    assert answer["id"].startswith("rerank-")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # In a list, since a pair whose second text is empty is taken for a single text otherwise.
    tokens = sum(map(len, tokenizer([[QUERY, text] for text in DOCUMENTS], truncation=True)["input_ids"]))
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    order = np.argsort(-np.array(expected), kind="stable").tolist()
    assert order.index(0) + 1 == order.index(4), "the same text twice, as they came"
    assert [each["index"] for each in answer["results"]] == order
    for each in answer["results"]:
        assert list(each) == ["index", "document", "relevance_score"]
        assert each["document"] == {"text": DOCUMENTS[each["index"]]}
        assert each["relevance_score"] == pytest.approx(expected[each["index"]], abs=1e-5)


@pytest.mark.parametrize("top_n", [0, 1, 3, 5, 100, None])
def test_top_n(top_n: int | None, http: TestClient) -> None:
    whole = post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS)
    best = post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS, top_n=top_n)
    assert best["results"] == whole["results"][: top_n or None]
    assert best["usage"] == whole["usage"]


@pytest.mark.parametrize(
    ("body", "same_as"),
    [
        ({"documents": [{"text": text} for text in DOCUMENTS]}, {"documents": DOCUMENTS}),
        ({"documents": DOCUMENTS[0]}, {"documents": DOCUMENTS[:1]}),
        ({"documents": DOCUMENTS, "return_documents": True, "rank_fields": ["text"], "max_tokens_per_doc": 0,
          "max_chunks_per_doc": 1, "relevant_spans": {"mode": "disabled"},
          "truncate_prompt_tokens": -1, "use_activation": True}, {"documents": DOCUMENTS}),
    ],
)  # fmt: skip
def test_what_is_the_same(body: dict[str, Any], same_as: dict[str, Any], http: TestClient) -> None:
    found, wanted = (post(http, "/v1/rerank", query=QUERY, **each) for each in (body, same_as))
    assert {**found, "id": ""} == {**wanted, "id": ""}


def test_truncation(http: TestClient, folder: Path) -> None:
    """Query and document together have as many tokens as asked for, as the tokenizer truncates a pair."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    pairs = [[QUERY, text] for text in DOCUMENTS]
    ids = tokenizer(pairs, truncation=True, max_length=12).input_ids
    answer = post(http, "/v1/score", queries=QUERY, documents=DOCUMENTS, truncate_prompt_tokens=12)
    assert answer["usage"]["prompt_tokens"] == sum(map(len, ids))
    model = CrossEncoder(str(folder), device="cpu", max_length=12)
    np.testing.assert_allclose([each["score"] for each in answer["data"]], model.predict(pairs), atol=1e-5)


def test_without_documents(http: TestClient) -> None:
    answer = post(http, "/v1/rerank", query=QUERY, documents=DOCUMENTS, return_documents=False)
    assert all(list(each) == ["index", "relevance_score"] for each in answer["results"])


def test_max_tokens(http: TestClient, folder: Path) -> None:
    """Documents and queries lose their last tokens, each by itself; a limit that the model has anyway changes nothing."""
    model, query = CrossEncoder(str(folder), device="cpu"), "one two three four five"
    documents = ["one two three four five", "six seven", "a long text " * 300]
    asked = {"query": query, "documents": documents}
    expected = model.predict([("one two", text) for text in ("one two three", "six seven", "a long text")])
    answer = post(http, "/v1/rerank", **asked, max_tokens_per_query=2, max_tokens_per_doc=3)
    assert answer["usage"]["prompt_tokens"] == 3 * 5 + 3 + 2 + 3
    for each in answer["results"]:
        assert each["relevance_score"] == pytest.approx(expected[each["index"]], abs=1e-5)
        assert each["document"] == {"text": documents[each["index"]]}
    scored = post(http, "/v1/score", text_1=query, text_2=documents, max_tokens_per_query=2, max_tokens_per_doc=3)
    np.testing.assert_allclose([each["score"] for each in scored["data"]], expected, atol=1e-5)
    whole = post(http, "/v1/rerank", **asked)
    for tokens in (0, 512, 4096, 2**31 - 1):
        same = post(http, "/v1/rerank", **asked, max_tokens_per_doc=tokens, max_tokens_per_query=tokens)
        assert same["results"] == whole["results"]


def test_documents_that_are_objects(http: TestClient, folder: Path) -> None:
    documents: list[dict[str, Any]] = [
        {"title": "Rome", "text": "It is in Italy.", "more": [1]},
        {"title": "Panda", "text": "It is a bear."},
    ]
    model = CrossEncoder(str(folder), device="cpu")
    for fields in (None, ["text"], ["title"], ["title", "text"]):
        texts = ["\n".join(str(each[field]) for field in fields or ["text"]) for each in documents]
        expected = model.predict([(QUERY, text) for text in texts])
        results = post(http, "/v1/rerank", query=QUERY, documents=documents, rank_fields=fields)["results"]
        for each in results:
            assert each["relevance_score"] == pytest.approx(expected[each["index"]], abs=1e-5)
            assert each["document"] == documents[each["index"]]


@pytest.mark.parametrize("raw_scores", [False, True])
def test_infinity(raw_scores: bool, http: TestClient, expected: list[float]) -> None:
    """tests/test_ranking_clients.py has its client."""
    body = {"query": QUERY, "documents": DOCUMENTS, "raw_scores": raw_scores, "model": "default/not-specified"}
    answer = post(http, "/rerank", **body)
    assert (answer["object"], answer["model"]) == ("rerank", "model")
    assert [{*each} for each in answer["results"]] == [{"index", "relevance_score"}] * 5
    for each in answer["results"]:
        score = each["relevance_score"]
        assert (1 / (1 + np.exp(-score)) if raw_scores else score) == pytest.approx(expected[each["index"]], abs=1e-5)
    [best] = post(http, "/rerank", **body, return_documents=True, top_n=1)["results"]
    assert best["document"] == DOCUMENTS[best["index"]]


@pytest.mark.parametrize("path", SCORE_PATHS)
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_score(path: str, names: tuple[str, str], http: TestClient, expected: list[float]) -> None:
    first, second = names
    for sides in ((QUERY, DOCUMENTS), ([QUERY], DOCUMENTS), ([QUERY] * 5, DOCUMENTS)):
        answer = post(http, path, **dict(zip(names, sides, strict=True)))
        assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
        assert (answer["object"], answer["model"]) == ("list", "model")
        assert [(each["index"], each["object"]) for each in answer["data"]] == [(index, "score") for index in range(5)]
        np.testing.assert_allclose([each["score"] for each in answer["data"]], expected, atol=1e-5)
    one = post(http, path, **{first: QUERY, second: DOCUMENTS[1]})
    assert one["data"][0]["score"] == pytest.approx(expected[1], abs=1e-5)


def test_logits(http: TestClient, expected: list[float]) -> None:
    answer = post(http, "/v1/score", text_1=QUERY, text_2=DOCUMENTS, use_activation=False)
    logits = np.array([each["score"] for each in answer["data"]])
    np.testing.assert_allclose(1 / (1 + np.exp(-logits)), expected, atol=1e-5)


def test_the_openai_client(http: TestClient, expected: list[float]) -> None:
    client = openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
    answer = client.post("/rerank", body={"query": QUERY, "documents": DOCUMENTS, "top_n": 1}, cast_to=httpx.Response)
    [best] = answer.json()["results"]
    assert best["index"] == int(np.argmax(expected))
    with pytest.raises(openai.NotFoundError):
        client.post("/rerank", body={"model": "nope", "query": "x", "documents": ["x"]}, cast_to=object)
    with pytest.raises(openai.BadRequestError, match="documents is empty"):
        client.post("/rerank", body={"query": "x", "documents": []}, cast_to=object)


def test_the_open_inference_protocol(http: TestClient, expected: list[float]) -> None:
    pairs = [side for text in DOCUMENTS for side in (QUERY, text)]
    tensor = {"name": "input-0", "shape": [5, 2], "datatype": "BYTES", "data": pairs}
    answer = post(http, "/v2/models/model/infer", inputs=[tensor], outputs=[{"name": "relevance"}])
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("relevance", "FP32", [5])
    np.testing.assert_allclose(output["data"], expected, atol=1e-5)
    described = http.get("/v2/models/model").json()
    assert {"name": "relevance", "datatype": "FP32", "shape": [-1]} in described["outputs"]


def test_it_answers_the_other_protocols_as_a_classification_does(folder: Path, http: TestClient, serve: Serve) -> None:
    classifier = serve(model_dir=folder, task="sequence_classification").client
    for parameters in ({}, {"return_probabilities": True}, {"return_raw_logits": True}, {"labels": True}, {"top_k": 3}):
        body = {"instances": [[QUERY, text] for text in DOCUMENTS] + [QUERY], "parameters": parameters}
        found, wanted = (post(each, "/v1/models/model:predict", **body) for each in (http, classifier))
        assert found == wanted
    refused = classifier.post("/v1/rerank", json={"query": "x", "documents": ["y"]})
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == (
        "model does not serve /v1/rerank: it serves sequence_classification at /v1/models/model:predict, "
        "/v2/models/model/infer, /v1/classify, /v1/pooling"
    )


@pytest.mark.parametrize("options", [{}, {"return_probabilities": True}, {"top_k": 1}, {"labels": True}])
def test_the_operators_options_change_no_score(
    options: dict[str, Any], folder: Path, serve: Serve, expected: list[float]
) -> None:
    answer = post(serve(model_dir=folder, **options).client, "/v1/score", text_1=QUERY, text_2=DOCUMENTS)
    np.testing.assert_allclose([each["score"] for each in answer["data"]], expected, atol=1e-5)


def test_many_documents(http: TestClient) -> None:
    """More than are tokenized at once."""
    texts = [f"text {number}" for number in range(200)]
    ranked = post(http, "/v1/rerank", query=QUERY, documents=texts)["results"]
    scored = post(http, "/v1/score", text_1=QUERY, text_2=texts)["data"]
    assert sorted(each["index"] for each in ranked) == list(range(200))
    for each in ranked:
        assert each["relevance_score"] == pytest.approx(scored[each["index"]]["score"], abs=1e-6)


def test_a_model_that_embeds_ranks_by_the_cosine(embedder: TestClient) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    [expected] = model.similarity(model.encode([QUERY]), model.encode(DOCUMENTS)).tolist()
    ranked = post(embedder, "/v1/rerank", query=QUERY, documents=DOCUMENTS)
    assert ranked["results"][0]["index"] == 1
    for each in ranked["results"]:
        assert each["relevance_score"] == pytest.approx(expected[each["index"]], abs=1e-5)
    scored = post(embedder, "/v1/score", queries=QUERY, documents=DOCUMENTS)
    np.testing.assert_allclose([each["score"] for each in scored["data"]], expected, atol=1e-5)
    pairwise = post(embedder, "/v1/score", queries=DOCUMENTS, documents=DOCUMENTS)
    np.testing.assert_allclose([each["score"] for each in pairwise["data"]], 1, atol=1e-5)
    tokens = post(embedder, "/v1/embeddings", input=[QUERY, *filter(None, DOCUMENTS)])["usage"]["total_tokens"]
    # The empty text is [CLS] [SEP].
    assert ranked["usage"] == {"prompt_tokens": tokens + 2, "total_tokens": tokens + 2}
    # A cosine is that of normalized vectors, too.
    for activation in (False, True):
        again = post(embedder, "/v1/score", queries=QUERY, documents=DOCUMENTS, use_activation=activation)
        assert again["data"] == scored["data"]


SIDES = "queries and documents, queries and items, data_1 and data_2, text_1 and text_2"


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("rerank", "{", 400, None, "the body is not valid JSON: Input data was truncated"),
        ("rerank", "", 400, None, "the body is empty; it must be a JSON object"),
        ("rerank", {}, 400, "query", "the body is not as expected: Object missing required field `query`"),
        ("rerank", {"query": "x"}, 400, "documents", "the body is not as expected: Object missing required field `documents`"),
        ("rerank", {"query": ["x"], "documents": ["y"]}, 400, "query",
         "the body is not as expected: Expected `str`, got `array` - at `$.query`"),
        ("rerank", {"query": "x", "documents": []}, 400, "documents", "documents is empty; give at least one"),
        ("rerank", {"query": "x", "documents": [{"title": "y"}]}, 400, "documents",
         "documents[0] has no text in the field 'text'"),
        ("rerank", {"query": "x", "documents": ["y"], "top_n": -1}, 400, "top_n",
         "the body is not as expected: Expected `int` >= 0 - at `$.top_n`"),
        ("rerank", {"query": "x", "documents": ["y"], "truncate_prompt_tokens": 513}, 400, "truncate_prompt_tokens",
         "truncate_prompt_tokens is 513; it can be -1, or 1 to 512, which the model takes"),
        ("rerank", {"query": "x", "documents": ["y"], "max_tokens_per_doc": -5}, 400, "max_tokens_per_doc",
         "the body is not as expected: Expected `int` >= 0 - at `$.max_tokens_per_doc`"),
        ("rerank", {"query": "x", "documents": ["y"], "max_chunks_per_doc": 10}, 400, "max_chunks_per_doc",
         "max_chunks_per_doc is not supported here; allowed: 1"),
        ("rerank", {"query": "x", "documents": ["y"], "relevant_spans": {"mode": "enabled"}}, 400, "relevant_spans",
         'relevant_spans is not supported here; allowed: {"mode":"disabled"}'),
        ("rerank", {"query": "x", "documents": ["y", {"text": "y"}], "rank_fields": ["title", "text"]}, 400, "documents",
         "documents[1] has no text in the field 'title'"),
        ("rerank", {"query": "x", "documents": ["y"], "model": "no"}, 404, "model", "Model with name no does not exist. This server has model."),
        ("score", {}, 400, None, f"the body has no two sides to score; give {SIDES}"),
        ("score", {"text_1": "x", "items": "y"}, 400, None, f"the body has no two sides to score; give {SIDES}"),
        ("score", {"queries": "x", "documents": "y", "text_1": "z"}, 400, "text_1", "text_1 is a third side beside queries and documents; give two"),
        ("score", {"text_1": [], "text_2": "y"}, 400, "text_1", "text_1 is empty; give at least one text"),
        ("score", {"queries": "x", "items": []}, 400, "items", "items is empty; give at least one text"),
        ("score", {"text_1": ["x", "y"], "text_2": ["x", "y", "z"]}, 400, "text_1",
         "text_1 has 2 texts and text_2 has 3; text_1 must have one, or as many"),
        ("score", {"text_1": "x", "text_2": [1]}, 400, "text_2",
         "the body is not as expected: Expected `str`, got `int` - at `$.text_2[0]`"),
        ("score", {"text_1": "x", "text_2": "y", "max_tokens_per_query": "9"}, 400, "max_tokens_per_query",
         "the body is not as expected: Expected `int | null`, got `str` - at `$.max_tokens_per_query`"),
        ("score", {"text_1": "x" * 100_000, "text_2": "y"}, 413, None,
         "the body has 100029 bytes; at most 100000 are allowed"),
    ],
)  # fmt: skip
def test_errors(http: TestClient, path: str, body: Any, status: int, param: str | None, message: str) -> None:
    response = http.post(f"/v1/{path}", content=body if isinstance(body, str) else json.dumps(body))
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["message"]) == (status, param, message)


@pytest.mark.parametrize("path", [*RERANK_PATHS, *SCORE_PATHS])
def test_other_methods(path: str, http: TestClient) -> None:
    response = http.get(path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["message"] == f"GET is not allowed on {path}; allowed: POST"


def test_another_task(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask")).client
    for path in ("/v1/rerank", "/openai/v1/score", "/v2/rerank"):
        response = client.post(path, json={"query": "x", "documents": ["y"]})
        assert response.status_code == 400
        assert response.json()["error"]["message"] == (
            f"model does not serve {path}: it serves fill_mask at /v1/models/model:predict, /v2/models/model/infer"
        )
    assert client.post("/openai/rerank", json={}).status_code == 404


def test_a_key(serve: Serve, folder: Path) -> None:
    client = serve(model_dir=folder, api_key="secret").client
    body = {"query": "x", "documents": ["y"]}
    for path in RERANK_PATHS:
        assert client.post(path, json=body).status_code == 401
        assert client.post(path, json=body, headers={"authorization": "Bearer secret"}).status_code == 200
