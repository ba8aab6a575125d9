"""Root paths of several protocols: the body's fields tell which one answers."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.testclient import TestClient

from protocol.shared_routes import SHARED_PATHS
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import ModelFolder, Serve, ServeSeveral
from tests.families import MINILM

TEI = {"query": "hello", "texts": ["world", "moon"]}
COHERE = {"query": "hello", "documents": ["world", "moon"]}


@pytest.fixture(scope="module")
def ranker(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_ranking"), max_request_bytes=6 * 2**20).client


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm").client


def post(client: TestClient, path: str, body: dict[str, Any]) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_the_fields_tell_the_protocol(ranker: TestClient) -> None:
    by_tei, by_cohere = post(ranker, "/rerank", TEI), post(ranker, "/rerank", COHERE)
    assert [{*each} for each in by_tei] == [{"index", "score"}] * 2
    assert {**by_cohere, "id": ""} == {**post(ranker, "/v1/rerank", COHERE), "id": ""}
    assert [each["index"] for each in by_tei] == [each["index"] for each in by_cohere["results"]]


@pytest.mark.parametrize(
    "more",
    [
        # A field that is null is as one that is missing; a text may read like a field's name.
        {"documents": None},
        {"query": '"documents"'},
        {"other": {"documents": []}},
    ],
)
def test_what_is_no_field_of_another_protocol(more: dict[str, Any], ranker: TestClient) -> None:
    assert [{*each} for each in post(ranker, "/rerank", TEI | more)] == [{"index", "score"}] * 2


def test_an_escaped_name(ranker: TestClient) -> None:
    escaped = json.dumps(TEI).replace("texts", "\\u0074exts")
    assert ranker.post("/rerank", content=escaped).json() == post(ranker, "/rerank", TEI)


def test_large_and_compressed_bodies(ranker: TestClient) -> None:
    """Read in a thread, in pieces, or after they are inflated."""
    for size in (2**19, 5 * 2**20):
        found = post(ranker, "/rerank", {**TEI, "filler": "x" * size})
        assert [{*each} for each in found] == [{"index", "score"}] * 2
        assert "results" in post(ranker, "/rerank", {**COHERE, "filler": "x" * size})
    headers = {"content-encoding": "gzip", "content-type": "application/json"}
    packed = ranker.post("/rerank", content=gzip.compress(json.dumps(TEI).encode()), headers=headers)
    assert packed.json() == post(ranker, "/rerank", TEI)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": "x"}, 422, "the body must have texts or documents"),
        ({}, 422, "the body must have texts or documents"),
        (TEI | COHERE, 422, "the body has texts and documents; it must have one of them"),
        ("{", 400, "the body is not valid JSON: Input data was truncated"),
        ("", 400, "the body is empty; it must be a JSON object"),
        ("[]", 422, "the body is not as expected: Expected `object`, got `array`"),
        ({**TEI, "padding": "x" * 2**23}, 413, f"the body has {2**23 + 61} bytes; at most {6 * 2**20} are allowed"),
    ],
)
def test_what_is_of_no_protocol(body: Any, status: int, message: str, ranker: TestClient) -> None:
    response = ranker.post("/rerank", content=body if isinstance(body, str) else json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"error": message, "error_type": "Validation"})


def test_errors_have_the_form_of_the_protocol(ranker: TestClient, embedder: TestClient) -> None:
    assert ranker.post("/rerank", json={**TEI, "texts": []}).json() == {
        "error": "texts is empty; give at least one", "error_type": "Empty",
    }  # fmt: skip
    assert ranker.post("/rerank", json={**COHERE, "documents": []}).json()["error"]["param"] == "documents"
    refused = embedder.post("/rerank", json=TEI)
    assert (refused.status_code, refused.json()["error_type"]) == (424, "Backend")
    assert refused.json()["error"].startswith("minilm does not serve /rerank: it serves text_embedding at ")
    assert len(post(embedder, "/rerank", COHERE)["results"]) == 2


def test_other_methods(ranker: TestClient) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = ranker.request(method, "/rerank")
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert ranker.options("/rerank").headers["allow"] == "OPTIONS, POST"
    assert ranker.get("/").json() == {"status": "alive"}
    assert ranker.put("/").status_code == 405


def test_records_name_the_protocol(ranker: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    for body in (TEI, COHERE, {}):
        ranker.post("/rerank", json=body)
    remove_observer(records.append)
    assert [(record.protocol, record.route, record.status) for record in records] == [
        ("tei", "/rerank", "200"), ("openai", "/rerank", "200"), ("server", "/rerank", "422"),
    ]  # fmt: skip


def test_several_models(serve_several: ServeSeveral, model_folder: ModelFolder) -> None:
    client = serve_several(
        {"model_dir": model_folder("bert", "text_ranking"), "model_name": "ranker"},
        {"model_dir": MINILM, "model_name": "minilm"},
    ).client
    assert [{*each} for each in post(client, "/rerank?model=ranker", TEI)] == [{"index", "score"}] * 2
    assert [{*each} for each in post(client, "/rerank", TEI)] == [{"index", "score"}] * 2
    for name in ("ranker", "minilm"):
        assert post(client, "/rerank", {**COHERE, "model": name})["model"] == name
    several = client.post("/rerank", json=COHERE)
    assert (several.status_code, several.json()["error"]["param"]) == (400, "model")
    assert client.post("/rerank", json={**COHERE, "model": "no"}).status_code == 404


def test_a_key(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "text_ranking"), api_key="secret").client
    for body in (TEI, COHERE):
        assert client.post("/rerank", json=body).status_code == 401
        assert client.post("/rerank", json=body, headers={"authorization": "Bearer secret"}).status_code == 200


@pytest.mark.parametrize("path", SHARED_PATHS)
def test_the_document_has_the_forms_of_all_protocols(path: str, ranker: TestClient) -> None:
    document = ranker.get("/openapi.json").json()
    operation = document["paths"][path]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    validator = Draft202012Validator({"$ref": "#/request", "request": content["schema"], **document})
    fields = SHARED_PATHS[path].protocols
    examples = [each["value"] for each in content["examples"].values()]
    for example in examples:
        validator.validate(example)
    # The messages of a chat are for other models.
    assert {protocol for name, protocol in fields.items() for example in examples if name in example} == {
        *fields.values()
    }
    for body in (*examples, {}):
        answer = ranker.post(path, json=body)
        assert answer.status_code == 200 or not body
        check_answer(document, operation["responses"][str(answer.status_code)], answer)


def check_answer(document: dict[str, Any], response: dict[str, Any], answer: Any) -> None:
    if "$ref" in response:
        response = document["components"]["responses"][response["$ref"].rpartition("/")[2]]
    schema = response["content"]["application/json"]["schema"]
    Draft202012Validator({"$ref": "#/answer", "answer": schema, **document}).validate(answer.json())
