"""SageMaker's contract for containers, with the bodies that users of its containers send."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.clouds.invocations import FORMS
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.families import MINILM
from tests.protocol.conftest import Run

TEXT = "I love Munich"
CHAT = [{"role": "user", "content": "The panda"}]
GREEDY = {"max_tokens": 4, "temperature": 0}
KEY = {"authorization": "Bearer secret"}
# What differs between two answers to one request.
CHANGING = ("id", "created", "request_id")


@pytest.fixture(scope="module")
def generator(generator_folder: GeneratorFolder, serve: Serve) -> TestClient:
    return serve(model_dir=generator_folder("llama"), backend="huggingface").client


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm").client


@pytest.fixture(scope="module")
def ranker(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_ranking")).client


@pytest.fixture(scope="module")
def several(model_folder: ModelFolder, serve_several: ServeSeveral) -> TestClient:
    kinds = {"classifier": "sequence_classification", "filler": "fill_mask", "tagger": "token_classification"}
    declared = [{"model_name": name, "model_dir": model_folder("bert", task)} for name, task in kinds.items()]
    later = {"model_name": "later", "model_dir": model_folder("bert", "fill_mask"), "load": False}
    return serve_several(*declared, {"model_name": "minilm", "model_dir": MINILM}, later).client


def invoke(client: TestClient, body: Any, **headers: str) -> Any:
    response = client.post("/invocations", json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response.json()


def without_changing(answer: Any) -> Any:
    return {**answer, **dict.fromkeys(CHANGING)} if isinstance(answer, dict) else answer


def check_same(client: TestClient, path: str, body: dict[str, Any]) -> None:
    """The answer is that of another protocol's path."""
    expected = client.post(path, json=body)
    assert expected.status_code == 200, expected.text
    assert without_changing(invoke(client, body)) == without_changing(expected.json())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CHAT, **GREEDY}),
        ("/v1/completions", {"prompt": ["The panda", "Rome"], **GREEDY}),
        ("/v1/completions", {"prompt": "The panda", "model": "model", "logprobs": 2, **GREEDY}),
        ("/v1/responses", {"input": "The panda", "max_output_tokens": 4, "temperature": 0}),
        ("/", {"inputs": "The panda", "parameters": {"max_new_tokens": 4, "details": True}}),
    ],
)
def test_a_generator(path: str, body: dict[str, Any], generator: TestClient) -> None:
    if path == "/v1/responses":
        found = invoke(generator, body)
        expected = generator.post(path, json=body).json()
        assert found["output"][0]["content"] == expected["output"][0]["content"]
    else:
        check_same(generator, path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": CHAT, **GREEDY}),
        ("/v1/completions", {"prompt": "The panda", **GREEDY}),
        ("/", {"inputs": "The panda", "parameters": {"max_new_tokens": 4}}),
    ],
)
def test_streams(path: str, body: dict[str, Any], generator: TestClient) -> None:
    """What InvokeEndpointWithResponseStream passes on."""

    def stream(at: str) -> list[Any]:
        response = generator.post(at, json={**body, "stream": True})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line[5:].strip() for line in response.text.splitlines() if line.startswith("data:")]
        return [without_changing(json.loads(event)) for event in events if event != "[DONE]"]

    assert stream("/invocations") == stream(path)
    assert len(stream(path)) > 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"input": [TEXT, "x"], "model": "minilm"}),
        ("/v1/embeddings", {"input": TEXT, "encoding_format": "base64"}),
        ("/embed", {"inputs": [TEXT, "x"], "truncate": True, "normalize": True}),
        ("/v1/rerank", {"query": TEXT, "documents": ["x", TEXT]}),
        ("/v1/score", {"text_1": TEXT, "text_2": ["x", TEXT]}),
        ("/v1/score", {"queries": TEXT, "documents": ["x", TEXT]}),
    ],
)
def test_an_embedder(path: str, body: dict[str, Any], embedder: TestClient) -> None:
    check_same(embedder, path, body)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rerank", {"query": TEXT, "documents": ["x", TEXT]}),
        ("/rerank", {"query": TEXT, "texts": ["x", TEXT], "return_text": True}),
        ("/v1/score", {"data_1": TEXT, "data_2": ["x", TEXT]}),
        ("/v1/classify", {"input": TEXT}),
    ],
)
def test_a_ranker(path: str, body: dict[str, Any], ranker: TestClient) -> None:
    check_same(ranker, path, body)


def test_models_of_other_tasks(run: Run) -> None:
    check_same(run("sequence_classification").client, "/v1/classify", {"input": TEXT})
    check_same(run("token_classification").client, "/v1/pooling", {"input": TEXT})


def test_a_sparse_embedder(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask"), task="sparse_embedding").client
    check_same(client, "/embed_sparse", {"inputs": [TEXT, "x"]})
    dropped = client.post("/invocations", json={"inputs": TEXT, "parameters": {"truncate": False}})
    message = "parameters is for pipelines: give the fields of /embed_sparse beside inputs"
    assert (dropped.status_code, dropped.json()["error"]) == (400, message)
    refused = client.post("/", json={"inputs": TEXT})
    assert (refused.status_code, refused.json()["error_type"]) == (400, "validation")


@pytest.mark.parametrize("media_type", ["text/plain", "Text/Plain; charset=UTF-8"])
def test_a_text(media_type: str, run: Run, generator: TestClient) -> None:
    headers, text = {"content-type": media_type}, 'Where "is" \\n Münich?\n\u0001'
    for client in (run("sequence_classification").client, generator):
        response = client.post("/invocations", content=text.encode(), headers=headers)
        assert response.status_code == 200, response.text
        assert response.json() == invoke(client, {"inputs": text})


@pytest.mark.parametrize(
    ("content", "media_type", "status", "message"),
    [
        (b"a,b", "text/csv", 415, "the content type text/csv is not supported; send application/json or text/plain"),
        (b"x", "application/x-npy", 415, "the content type application/x-npy is not supported; send application/json or"),
        (b"x", "text/plain; charset=latin-1", 415, "the charset latin-1 is not supported; send utf-8"),
        (b"\xff", "text/plain", 400, "the body is not UTF-8"),
        (b"", "text/plain", 400, "the body is empty; it must be"),
        (b"{", "application/json", 400, "the body is not valid JSON"),
        (b"[1]", "application/json", 400, "the body is not as expected: Expected `object`, got `array`"),
        (b"{}", "application/json", 400, "the body must have inputs or messages or prompt or input or query and documents or query and texts"),
        (b'{"query": "x"}', "application/json", 400, "the body must have inputs or messages"),
        (b'{"inputs": "x", "prompt": "y"}', "application/json", 400, "the body has the fields of several protocols: inputs, prompt"),
        (b'{"inputs": "x", "top_k": 2}', "application/json", 400, "the body has top_k, which text-classification does not have"),
        (b'{"inputs": "x", "parameters": {"top_k": 0}}', "application/json", 400, "the body is not as expected: Expected `int` >= 1"),
    ],
)  # fmt: skip
def test_what_is_refused(content: bytes, media_type: str, status: int, message: str, run: Run) -> None:
    client = run("sequence_classification").client
    response = client.post("/invocations", content=content, headers={"content-type": media_type})
    assert response.status_code == status
    assert response.json()["error"].startswith(message)
    assert response.json()["error_type"] == "validation"


def test_errors_have_the_form_of_the_body_s_protocol(run: Run) -> None:
    refused = run("sequence_classification").client.post("/invocations", json={"messages": CHAT})
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "messages"
    refused = run("sequence_classification").client.post("/invocations", json={"prompt": "x"})
    assert refused.json()["error"]["message"].startswith("model does not serve /v1/completions: it serves sequence_cl")


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"inputs": ["a"] * 5}, "max_client_batch_size"),
        ({"inputs": "a" * 101}, "max_text_characters"),
        ({"input": ["a"] * 5}, "max_client_batch_size"),
        ("a" * 101, "max_text_characters"),
    ],
)
def test_limits(body: Any, limit: str, model_folder: ModelFolder, serve: Serve) -> None:
    limits = {"max_client_batch_size": 4, "max_text_characters": 100, "max_request_bytes": 1000}
    client = serve(model_dir=model_folder("bert", "sequence_classification"), **limits).client
    content, media_type = (body, "text/plain") if isinstance(body, str) else (json.dumps(body), "application/json")
    response = client.post("/invocations", content=content, headers={"content-type": media_type})
    assert response.status_code == 413
    assert f"--{limit} allows" in response.text
    long = client.post("/invocations", content="a" * 1001, headers={"content-type": "text/plain"})
    assert (long.status_code, long.json()["error"]) == (413, "the body has 1001 bytes; at most 1000 are allowed")


def test_headers_of_sagemaker(run: Run, several: TestClient) -> None:
    client = run("sequence_classification").client
    plain = invoke(client, {"inputs": TEXT})
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "c000b4f9", "X-Amzn-SageMaker-Inference-Id": "1", "Accept": "*/*"}
    assert invoke(client, {"inputs": TEXT}, **headers) == plain
    refused = client.post("/invocations", json={"inputs": TEXT}, headers={"X-Amzn-SageMaker-Target-Model": "a.tar.gz"})
    assert (refused.status_code, refused.json()["error"].split(" ")[0]) == (400, "x-amzn-sagemaker-target-model")
    # An adapter is the model of that name, whatever the body says.
    adapter = "X-Amzn-SageMaker-Adapter-Identifier"
    assert [{*each} for each in invoke(several, {"inputs": TEXT}, **{adapter: "classifier"})] == [{"label", "score"}]
    assert invoke(several, {"input": TEXT, "model": "no"}, **{adapter: "classifier"})["model"] == "classifier"
    unknown = several.post("/invocations", json={"inputs": TEXT}, headers={adapter: "nobody"})
    assert unknown.status_code == 404


def test_several_models(several: TestClient) -> None:
    assert invoke(several, {"input": TEXT, "model": "minilm"})["object"] == "list"
    assert "probs" in invoke(several, {"input": TEXT, "model": "classifier"})["data"][0]
    found = several.post("/invocations?model=classifier", json={"inputs": TEXT})
    assert [{*each} for each in found.json()] == [{"label", "score"}]
    unnamed = several.post("/invocations", json={"inputs": TEXT})
    assert (unnamed.status_code, unnamed.json()["error"].split(";")[0]) == (400, "several models serve /invocations")
    assert several.post("/invocations", json={"input": TEXT, "model": "no"}).status_code == 404
    assert several.post("/invocations?model=later", json={"inputs": TEXT}).status_code == 503


@pytest.mark.parametrize(
    "body", [{"query": TEXT, "texts": [TEXT]}, {"query": TEXT, "documents": [TEXT]}, {"inputs": TEXT}]
)
def test_every_form_heeds_the_name_of_the_model(
    body: dict[str, Any], model_folder: ModelFolder, serve_several: ServeSeveral
) -> None:
    declared = [{"model_name": name, "model_dir": model_folder("bert", "text_ranking")} for name in ("a", "b")]
    client = serve_several(*declared).client
    adapter = {"X-Amzn-SageMaker-Adapter-Identifier": "b"}
    assert client.post("/invocations", json=body, headers=adapter).status_code == 200
    assert client.post("/invocations?model=b", json=body).status_code == 200
    unknown = {"X-Amzn-SageMaker-Adapter-Identifier": "nobody"}
    assert client.post("/invocations", json=body, headers=unknown).status_code == 404
    assert client.post("/invocations?model=nobody", json=body).status_code == 404
    assert client.post("/invocations", json=body).status_code in (400, 422)


def test_a_key(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), api_key="secret").client
    assert client.get("/ping").status_code == 200
    assert client.post("/invocations", json={"inputs": TEXT}).status_code == 401
    assert client.post("/invocations", json={"inputs": TEXT}, headers=KEY).status_code == 200


def test_other_methods(ranker: TestClient) -> None:
    response = ranker.get("/invocations")
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert ranker.options("/invocations").headers["allow"] == "OPTIONS, POST"


def test_records_name_the_protocol(ranker: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    for body in ({"query": "x", "documents": ["y"]}, {"query": "x", "texts": ["y"]}, {}):
        ranker.post("/invocations", json=body)
    remove_observer(records.append)
    assert [(record.protocol, record.route, record.status) for record in records] == [
        ("sagemaker", "/invocations", status) for status in ("200", "200", "400")
    ]


def test_a_large_body(ranker: TestClient) -> None:
    """Its form is found in a thread."""
    body = {"query": "x", "documents": ["y"], "filler": "z" * 2**19}
    assert len(invoke(ranker, body)["results"]) == 1


@pytest.mark.parametrize("kind", ["ranker", "embedder", "generator"])
def test_the_document(kind: str, request: pytest.FixtureRequest) -> None:
    """It has the bodies of the calls that the model serves, and a text; their examples work."""
    client: TestClient = request.getfixturevalue(kind)
    operation = client.get("/openapi.json").json()["paths"]["/invocations"]["post"]
    assert {*operation["requestBody"]["content"]} == {"application/json", "text/plain"}
    examples = [each["value"] for each in operation["requestBody"]["content"]["application/json"]["examples"].values()]
    found = {names for names in FORMS for example in examples if {*names} <= {*example}}
    expected: dict[str, set[tuple[str, ...]]] = {
        "ranker": {("inputs",), ("query", "documents"), ("query", "texts"), ("text_1",)},
        "embedder": {("inputs",), ("input",), ("query", "documents")},
        "generator": {("inputs",), ("messages",), ("prompt",), ("input",)},
    }
    assert expected[kind] <= found
    for example in examples:
        assert client.post("/invocations", json=example).status_code == 200, example


def test_every_form_has_a_call_that_exists(ranker: TestClient) -> None:
    paths = {target.path for targets in FORMS.values() for target in targets}
    assert paths <= {*ranker.get("/openapi.json").json()["paths"]}
