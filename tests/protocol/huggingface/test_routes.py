"""Which model and which task answer, and the errors."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.huggingface.tasks import SERVED
from runners.core.task import Task
from tests.conftest import GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.protocol.conftest import Run

TEXT = "I love Munich"
MASKED = "The capital of [MASK] is paris."
KEY = {"authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def several(model_folder: ModelFolder, serve_several: ServeSeveral) -> TestClient:
    folders = {
        "organization/classifier": "sequence_classification", "filler": "fill_mask", "embed": "text_embedding",
        "embed2": "text_embedding",
    }  # fmt: skip
    declared = [{"model_name": name, "model_dir": model_folder("bert", task)} for name, task in folders.items()]
    return serve_several(
        *declared, {"model_name": "later", "model_dir": model_folder("bert", "fill_mask"), "load": False}
    ).client


def refuse(client: TestClient, path: str, status: int, **body: Any) -> str:
    """The message of the error that the request is answered with."""
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    error = response.json()
    assert error.keys() == {"error", "error_type"}
    assert error["error_type"] == {503: "healthcheck"}.get(status, "validation")
    return str(error["error"])


@pytest.mark.parametrize(
    "path",
    [
        "/", "/models/model", "/pipeline/text-classification", "/pipeline/sentiment-analysis", "/pipeline/text-classification/model",
        "/models/model/pipeline/text-classification", "/?model=model",
    ],
)  # fmt: skip
def test_every_path_of_one_model(path: str, run: Run) -> None:
    client = run("sequence_classification").client
    expected = client.post("/", json={"inputs": TEXT}).json()
    assert [len(classes) for classes in expected] == [5]
    response = client.post(path, json={"inputs": TEXT})
    assert (response.status_code, response.json()) == (200, expected)


@pytest.mark.parametrize(
    ("path", "inputs"),
    [
        ("/models/organization/classifier", TEXT),
        ("/models/organization%2Fclassifier", TEXT),
        ("/models/organization/classifier/pipeline/text-classification", TEXT),
        ("/pipeline/text-classification/organization/classifier", TEXT),
        ("/?model=organization/classifier", TEXT),
        # The only models of their tasks.
        ("/pipeline/text-classification", TEXT),
        ("/pipeline/fill-mask", MASKED),
        ("/models/filler", MASKED),
    ],
)
def test_paths_of_several_models(path: str, inputs: str, several: TestClient) -> None:
    response = several.post(path, json={"inputs": inputs})
    assert response.status_code == 200, response.text
    [first, *_] = response.json()
    assert ("token_str" in first) == (inputs is MASKED)


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/", 400, "several models serve /; name one with ?model=, or call /models/NAME: organization/classifier, filler, embed, embed2"),
        ("/pipeline/feature-extraction", 400, "several models serve /pipeline/feature-extraction; name one"),
        ("/pipeline/question-answering", 400, "no model of this server serves /pipeline/question-answering; it has organization/cla"),
        ("/pipeline/fill-mask/embed", 400, "embed does not serve /pipeline/fill-mask/embed: it serves text_embedding at /v1/models/emb"),
        ("/models/nobody", 404, "Model with name nobody does not exist. This server has organization/classifier, filler"),
        ("/pipeline/fill-mask/nobody", 404, "Model with name nobody does not exist."),
        ("/pipeline/image-to-text", 404, "there is no task image-to-text; there are feature-extraction, fill-mask"),
        ("/models/later", 503, "Model with name later is not ready."),
    ],
)  # fmt: skip
def test_models_that_do_not_answer(path: str, status: int, message: str, several: TestClient) -> None:
    assert refuse(several, path, status, inputs=TEXT).startswith(message)


def test_a_task_that_the_hub_does_not_have(model_folder: ModelFolder, serve: Serve) -> None:
    """Every other task is served."""
    assert frozenset().union(*SERVED.values()) == frozenset(Task) - {Task.SPARSE_EMBEDDING}
    client = serve(model_dir=model_folder("bert", "fill_mask"), task="sparse_embedding").client
    for path in ("/", "/models/model"):
        message = f"model does not serve {path}: it serves sparse_embedding at"
        assert message in refuse(client, path, 400, inputs=TEXT)


def test_the_root_is_alive_nevertheless(several: TestClient) -> None:
    assert several.get("/").json() == {"status": "alive"}
    assert several.head("/").status_code == 200
    response = several.put("/")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")


def test_the_root_needs_a_key_only_for_calls(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification"), api_key="secret").client
    assert client.get("/").json() == {"status": "alive"}
    for path in ("/", "/models/model", "/pipeline/text-classification"):
        assert client.post(path, json={"inputs": TEXT}).status_code == 401
        assert client.post(path, json={"inputs": TEXT}, headers=KEY).status_code == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "the body must have inputs or documents"),
        ({"inputs": 7}, "the body is not as expected: Expected `str | object | array`, got `int` - at `$.inputs`"),
        ({"inputs": []}, "inputs is empty; give at least one text"),
        ({"inputs": ["a", ["b"]]}, "inputs[1] has 1 texts; a pair is a list of two"),
        ({"inputs": {"text": "a", "pair": "b"}}, "the body is not as expected: Object contains unknown field `pair` - at `$.inputs`"),
        ({"inputs": TEXT, "parameters": [1]}, "parameters must be an object"),
        ({"inputs": TEXT, "options": 1}, "options must be an object"),
        ({"inputs": TEXT, "parameters": {"top_k": 0}}, "the body is not as expected: Expected `int` >= 1 - at `$.parameters.top_k`"),
        ({"inputs": TEXT, "stream": True}, "stream is not supported for text-classification"),
        ({"inputs": TEXT, "parameter": {"top_k": 1}}, "the body has parameter, which text-classification does not have; there are inputs"),
    ],
)  # fmt: skip
def test_malformed_bodies(body: dict[str, Any], message: str, run: Run) -> None:
    assert refuse(run("sequence_classification").client, "/", 400, **body).startswith(message)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({"inputs": ["a"] * 5}, "max_client_batch_size"),
        ({"inputs": "a", "parameters": {"top_k": 9}}, "max_top_k"),
        ({"inputs": "a" * 101}, "max_text_characters"),
        ({"inputs": "a", "options": dict.fromkeys("abcde")}, "max_parameters"),
        ({"inputs": "a", "parameters": dict.fromkeys("abcde")}, "max_parameters"),
    ],
)
def test_limits(body: dict[str, Any], limit: str, model_folder: ModelFolder, serve: Serve) -> None:
    limits = {"max_client_batch_size": 4, "max_top_k": 8, "max_text_characters": 100, "max_parameters": 4}
    client = serve(model_dir=model_folder("bert", "sequence_classification"), **limits).client
    assert f"--{limit} allows" in refuse(client, "/", 413, **body)


def test_a_generator_is_no_encoder(generator_folder: GeneratorFolder, serve: Serve) -> None:
    client = serve(model_dir=generator_folder("llama"), backend="huggingface").client
    assert refuse(client, "/pipeline/fill-mask", 400, inputs=MASKED).startswith(
        "model does not serve /pipeline/fill-mask"
    )
