"""Paths and methods that there are not, under every protocol that answers with `error`."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve

TENSOR = {"name": "input-0", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", "/v1/models/model:predict", 405, "GET is not allowed on /v1/models/model:predict; allowed: POST"),
        ("TRACE", "/v1/models/model:predict", 405, "TRACE is not allowed on /v1/models/model:predict; allowed: POST"),
        ("PUT", "/v1/models/model:predict", 405, "PUT is not allowed on /v1/models/model:predict; allowed: POST"),
        ("POST", "/v1/models", 405, "POST is not allowed on /v1/models; allowed: GET, HEAD"),
        ("POST", "/v1/models/model:classify", 404, "there is no :classify; this server offers :predict and :explain"),
        ("POST", "/v1/models/nope:predict", 404, "Model with name nope does not exist. This server has model."),
        ("POST", "/v1/models/nope:classify", 404, "Model with name nope does not exist. This server has model."),
        ("POST", "/v1/models/model:explain", 501, "this server has no explainer; it offers :predict"),
        ("GET", "/v3", 404, "there is nothing at /v3; the protocols are under /v1 and /v2"),
        ("GET", "/v2/models/model/infer", 405, "GET is not allowed on /v2/models/model/infer; allowed: POST"),
        ("GET", "/v2/models/nope", 404, "Model with name nope does not exist. This server has model."),
        ("GET", "/v2/models/nope/ready", 404, "Model with name nope does not exist. This server has model."),
        ("POST", "/v2/models/nope/infer", 404, "Model with name nope does not exist. This server has model."),
        ("GET", "/v2/models/model/versions/2", 404, "Model model has no version 2; it has version 1."),
        ("POST", "/v2/models/model/versions/2/infer", 404, "Model model has no version 2; it has version 1."),
        ("DELETE", "/v2/models/model", 405, "DELETE is not allowed on /v2/models/model; allowed: GET, HEAD"),
        ("POST", "/v2/health/live", 405, "POST is not allowed on /v2/health/live; allowed: GET, HEAD"),
    ],
)
def test_wrong_paths_and_methods(client: TestClient, method: str, path: str, status: int, error: str) -> None:
    body = {"inputs": [TENSOR]} if path.startswith("/v2") else None
    response = client.request(method, path, json=body)
    assert (response.status_code, response.json()) == (status, {"error": error})
    assert ("allow" in response.headers) == (status == 405)
