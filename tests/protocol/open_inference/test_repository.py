from __future__ import annotations

import asyncio
import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.waiting import wait_until

INDEX = "/v2/repository/index"
LOAD, UNLOAD = (f"/v2/repository/models/model/{verb}" for verb in ("load", "unload"))


def index(client: TestClient, **body: Any) -> list[Any]:
    response = client.post(INDEX, json=body)
    assert response.status_code == 200
    listed: list[Any] = response.json()
    return listed


@pytest.fixture(params=["encoder", "generator"])
def client(request: Any, model_folder: ModelFolder, generator_folder: GeneratorFolder, serve: Serve) -> TestClient:
    if request.param == "encoder":
        return serve(model_dir=model_folder("bert", "sequence_classification"), enable_repository=True).client
    return serve(model_dir=generator_folder("llama"), backend="huggingface", enable_repository=True).client


def test_unload_and_load(client: TestClient) -> None:
    ready = {"name": "model", "version": "1", "state": "READY", "reason": ""}
    predict = {"instances": ["Hello"], "parameters": {"temperature": 0}}
    expected = client.post("/v1/models/model:predict", json=predict).json()
    assert index(client) == index(client, ready=True) == [ready]
    assert client.post(INDEX).json() == [ready], "a body need not be sent"

    assert client.post(UNLOAD).json() == {"name": "model", "unload": True}
    assert client.post(UNLOAD).json() == {"name": "model", "unload": True}
    assert index(client) == [ready | {"state": "UNAVAILABLE", "reason": "unloaded"}]
    assert index(client, ready=True) == []
    for path in ("/v2/health/ready", "/v2/models/model/ready", "/v1/models/model", "/v2/models/model"):
        assert client.get(path).status_code == 503, path
    assert client.get("/v2/health/live").status_code == 200
    for path in ("/v1/models/model:predict", "/v2/models/model/infer"):
        refused = client.post(path, json=predict)
        assert (refused.status_code, refused.json()) == (503, {"error": "Model with name model is not ready."})
    assert client.post("/v1/completions", json={"prompt": "a"}).status_code == 503

    assert client.post(LOAD).json() == {"name": "model", "load": True}
    assert client.post(LOAD).json() == {"name": "model", "load": True}
    assert index(client) == [ready]
    assert client.get("/v2/health/ready").status_code == 200
    assert client.post("/v1/models/model:predict", json=predict).json() == expected


def test_a_loaded_model_that_stops_was_not_unloaded(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "sequence_classification"), enable_repository=True)
    for path in (UNLOAD, LOAD):
        assert served.client.post(path).status_code == 200
    served.runner.close()
    [model] = index(served.client)
    assert (model["state"], model["reason"]) == ("UNAVAILABLE", "it has died")


def test_an_unloaded_model_is_gone(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "fill_mask"), enable_repository=True)
    model = weakref.ref(served.runner._loaded.model)
    served.client.post(UNLOAD)
    gc.collect()
    assert model() is None


def test_what_is_under_way_is_answered_first(model_folder: ModelFolder, serve: Serve) -> None:
    served = serve(model_dir=model_folder("bert", "token_classification"), enable_repository=True)
    client = served.client
    answers = []
    body = {"instances": ["word " * 300] * 200}
    asking = threading.Thread(target=lambda: answers.append(client.post("/v1/models/model:predict", json=body)))
    asking.start()
    wait_until(lambda: served.runner._loaded.queue.admission.requests)
    assert client.post(UNLOAD).status_code == 200
    asking.join(20)
    assert [len(answer.json()["predictions"]) for answer in answers] == [200]


def test_a_model_that_cannot_be_loaded_says_why(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder("electra", "fill_mask"), tmp_path / "model"))
    client = serve(model_dir=folder, enable_repository=True).client
    client.post(UNLOAD)
    (folder / "config.json").rename(tmp_path / "config.json")
    response = client.post(LOAD)
    assert response.status_code == 500
    [model] = index(client)
    assert (model["state"], model["reason"]) == ("UNAVAILABLE", response.json()["error"])
    (tmp_path / "config.json").rename(folder / "config.json")
    assert client.post(LOAD).status_code == 200


async def test_loading_is_seen(model_folder: ModelFolder, serve: Serve) -> None:
    models = serve(model_dir=model_folder("electra", "fill_mask"), enable_repository=True).models
    model = models.find("model")
    seen = [model.state]
    for change in (models.unload("model"), models.load("model")):
        task = asyncio.create_task(change)
        while not task.done():
            await asyncio.sleep(0)
            seen += [model.state] if model.state != seen[-1] else []
        await task
    assert seen == ["READY", "UNLOADING", "UNAVAILABLE", "LOADING", "READY"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "error"),
    [
        (
            "POST",
            "/v2/repository/models/nope/load",
            None,
            404,
            "Model with name nope does not exist. This server has model.",
        ),
        (
            "POST",
            "/v2/repository/models/nope/unload",
            None,
            404,
            "Model with name nope does not exist. This server has model.",
        ),
        ("GET", LOAD, None, 405, f"GET is not allowed on {LOAD}; allowed: POST"),
        ("GET", INDEX, None, 405, f"GET is not allowed on {INDEX}; allowed: POST"),
        (
            "POST",
            LOAD,
            {"parameters": {"config": "{}"}},
            400,
            "load takes no parameters: a model is loaded as the operator has declared it",
        ),
        ("POST", INDEX, {"ready": 1}, 400, "the body is not as expected: Expected `bool`, got `int` - at `$.ready`"),
        ("POST", INDEX, [], 400, "the body is not as expected: Expected `object`, got `array`"),
    ],
)
def test_wrong_requests(
    model_folder: ModelFolder, serve: Serve, method: str, path: str, body: Any, status: int, error: str
) -> None:
    client = serve(model_dir=model_folder("electra", "fill_mask"), enable_repository=True).client
    response = client.request(method, path, json=body) if body is not None else client.request(method, path)
    assert (response.status_code, response.json()) == (status, {"error": error})
