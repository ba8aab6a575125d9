"""The document against the application it describes; tests/test_schemathesis.py holds the answers against it."""

from __future__ import annotations

import json
from itertools import chain
from typing import Any

import jsonschema
import pytest
from starlette.testclient import TestClient

from protocol.application import PROTOCOLS, create_routes
from protocol.context import make_context
from protocol.http.open_paths import BENTOML_PATHS, OPEN_PATHS
from protocol.openapi.document import describe_server
from protocol.shared_routes import SHARED_PATHS
from protocol.tei.routes import CALLS as TEI_CALLS
from runners.core.arguments import Arguments
from runners.core.task import Task
from runners.hosting.selection import create_runner
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.served import models_of

# What the document leaves out: routes that only say that there is nothing.
FALLBACKS = {"/v1/models/{name:path}:{verb}", "/openai/{path:path}"}
# The beginnings of the paths that are got, among those whose routes answer other methods themselves.
GUARDED = ("/openai/v1/models", "/info")
BENTOML_OPERATIONS = {("get", path) for path in BENTOML_PATHS}
ENCODER_TASKS = [task for task in Task if "generation" not in task]

Operation = dict[str, Any]


@pytest.fixture(scope="module")
def clients(model_folder: ModelFolder, generator_folder: GeneratorFolder, serve: Serve) -> dict[Task, TestClient]:
    encoders = {task: serve(model_dir=model_folder("bert", task), task=task).client for task in ENCODER_TASKS}
    return encoders | {
        Task.TEXT_GENERATION: serve(model_dir=generator_folder("llama"), backend="huggingface").client,
        Task.TEXT2TEXT_GENERATION: serve(model_dir=generator_folder("t5")).client,
    }


def read_document(client: TestClient) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def operations(document: dict[str, Any]) -> list[tuple[str, str, Operation]]:
    return [(method, path, operation) for path, item in document["paths"].items() for method, operation in item.items()]


@pytest.mark.parametrize("prefix", ["/openai", "", "/"])
def test_every_route_is_described_and_nothing_else(prefix: str, model_folder: ModelFolder) -> None:
    arguments = Arguments(model_dir=str(model_folder("bert", "fill_mask")))
    models = models_of(create_runner(arguments))
    routes = create_routes(make_context(models, arguments, prefix))
    served = {
        (method.lower(), route.path.replace(":path}", "}"))
        for route in chain.from_iterable(routes.values())
        if route.path not in FALLBACKS
        for method in route.methods or ["GET" if route.path.startswith(GUARDED) else "POST"]
        if method != "HEAD"
    }
    [document] = [route for route in routes["server"] if route.path == "/openapi.json"]
    described = read_document(TestClient(document.app))
    assert {(method, path) for method, path, _ in operations(described)} - BENTOML_OPERATIONS == served


def test_the_document_is_the_same_bytes_under_both_names(clients: dict[Task, TestClient]) -> None:
    client = clients[Task.FILL_MASK]
    assert client.get("/openapi.json").content == client.get("/docs.json").content
    assert read_document(client)["openapi"] == "3.1.0"


@pytest.mark.parametrize("task", Task)
def test_every_example_is_answered_by_the_task_that_it_is_of(task: Task, clients: dict[Task, TestClient]) -> None:
    client = clients[task]
    sent = []
    for _, path, operation in operations(read_document(client)):
        for media_type, media in operation.get("requestBody", {"content": {}})["content"].items():
            for name, example in media.get("examples", {}).items():
                sent.append((path, name))
                url = path.replace("{name}", "model").replace("{version}", "1")
                response = client.post(url, content=to_body(example["value"]), headers=to_headers(media_type, example))
                assert response.status_code == 200, (path, name, response.text)
    assert len(sent) >= 4


def to_body(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else json.dumps(value).encode()


def to_headers(media_type: str, example: dict[str, Any]) -> dict[str, str]:
    headers = {"content-type": media_type}
    if media_type == "application/octet-stream":
        _, length = json.JSONDecoder().raw_decode(example["value"])
        assert example["summary"].endswith(f"inference-header-content-length is {length}")
        headers["inference-header-content-length"] = str(length)
    return headers


@pytest.mark.parametrize("task", Task)
def test_every_example_is_as_its_schema_says(task: Task, clients: dict[Task, TestClient]) -> None:
    document = read_document(clients[task])
    found = [
        (media["schema"], example["value"])
        for _, _, operation in operations(document)
        for message in [operation.get("requestBody", {}), *operation["responses"].values()]
        for media in message.get("content", {}).values()
        for example in media.get("examples", {}).values()
    ]
    errors = [response["content"] for response in document["components"]["responses"].values()]
    found += [
        (media["schema"], media["example"]) for content in errors for media in content.values() if "example" in media
    ]
    assert len(found) >= 20
    for schema, value in found:
        jsonschema.validate(value, {**schema, "components": document["components"]}, jsonschema.Draft202012Validator)


def test_examples_have_the_mask_of_the_model(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("roberta", "fill_mask")).client
    body = read_document(client)["paths"]["/v1/models/{name}:predict"]["post"]["requestBody"]
    [example] = body["content"]["application/json"]["examples"].values()
    assert "<mask>" in example["value"]["instances"][0]
    assert client.post("/v1/models/model:predict", json=example["value"]).status_code == 200


def test_what_the_model_does_not_serve_has_no_answer(clients: dict[Task, TestClient]) -> None:
    for task, client in clients.items():
        document = read_document(client)
        for path in ("/v2/models/{name}/generate", "/v1/completions", "/openai/v1/completions"):
            answers = document["paths"][path]["post"]["responses"]
            assert ("200" in answers) == ("generation" in task)
        answers = document["paths"]["/v1/embeddings"]["post"]["responses"]
        assert ("200" in answers) == (task is Task.TEXT_EMBEDDING)
        ranks = task in (Task.TEXT_EMBEDDING, Task.TEXT_RANKING)
        for path in ("/v1/rerank", "/openai/v1/score", "/v2/rerank"):
            assert ("200" in document["paths"][path]["post"]["responses"]) == ranks
        for path in ("/rerank", "/score"):
            assert ("200" in document["paths"][path]["post"]["responses"]) == ranks
        for path in ("/openai/rerank", "/openai/v2/rerank", "/openai/score"):
            assert (path in document["paths"]) == ranks
        for path, call in TEI_CALLS.items():
            if path in SHARED_PATHS:
                continue
            assert ("200" in document["paths"][path]["post"]["responses"]) == (task in call.tasks)


def test_a_predictor_has_errors_of_its_own(model_folder: ModelFolder) -> None:
    arguments = Arguments(model_dir=str(model_folder("bert", "fill_mask")), predictor_host="localhost:1")
    for given, own in ((arguments, {"502", "504"}), (arguments.model_copy(update={"predictor_host": None}), set())):
        document = describe_server(
            make_context(models_of(create_runner(given)), given),
            [describe for _, _, describe in PROTOCOLS],
        )
        for path in ("/v1/models/{name}:predict", "/v2/models/{name}/infer"):
            assert {"502", "504"} & {*document["paths"][path]["post"]["responses"]} == own


def test_before_the_model_is_loaded_there_is_a_document_without_examples(model_folder: ModelFolder) -> None:
    arguments = Arguments(model_dir=str(model_folder("bert", "fill_mask")))
    routes = create_routes(make_context(models_of(create_runner(arguments)), arguments))
    [document] = [route for route in routes["server"] if route.path == "/openapi.json"]
    described = read_document(TestClient(document.app))
    content = described["paths"]["/v1/models/{name}:predict"]["post"]["requestBody"]["content"]
    assert "examples" not in content["application/json"]


def test_keys(model_folder: ModelFolder, serve: Serve) -> None:
    """The document and its page are open, and say which routes are not."""
    client = serve(model_dir=model_folder("bert", "sequence_classification"), api_key="secret").client
    for path in OPEN_PATHS - BENTOML_PATHS:
        assert client.get(path).status_code == 200
    document = read_document(client)
    assert document["security"] == [{"bearer": []}]
    assert document["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for method, path, operation in operations(document):
        is_open = operation.get("security") == []
        assert ("401" in operation["responses"]) != is_open
        if (method, path) not in BENTOML_OPERATIONS:
            url = path.replace("{name}", "model").replace("{version}", "1").replace("{repository}", "r")
            assert (client.request(method, url).status_code == 401) != is_open


def test_an_admin_s_key(model_folder: ModelFolder, serve: Serve) -> None:
    """Loading and unloading have a security scheme of their own, and refusals that are described also without keys."""
    folder = model_folder("bert", "sequence_classification")
    path = "/v2/repository/models/{name}/load"
    for arguments, schemes, statuses in (
        ({}, None, {"403"}),
        ({"api_key": "a"}, {"bearer"}, {"401", "403"}),
        ({"admin_api_key": "b"}, {"admin"}, {"401", "403"}),
        ({"api_key": "a", "admin_api_key": "b"}, {"bearer", "admin"}, {"401", "403"}),
    ):
        document = read_document(serve(model_dir=folder, **arguments).client)
        assert (document["components"].get("securitySchemes") or {}).keys() == (schemes or set())
        operation = document["paths"][path]["post"]
        assert {"401", "403"} & operation["responses"].keys() == statuses
        assert operation.get("security") == ([{"admin": []}] if schemes and "admin" in schemes else None)


def test_the_page_refers_to_nothing_elsewhere(clients: dict[Task, TestClient]) -> None:
    response = clients[Task.FILL_MASK].get("/docs")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "//" not in response.text
