from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve
from tests.families import MINILM

# Asks for a path that answers.
Post = Callable[..., Any]
# Checks an error: of a client, a path, a body, its status, its message, and its kind.
CheckError = Callable[..., None]


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm", max_request_bytes=100_000).client


@pytest.fixture(scope="module")
def classifier(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


@pytest.fixture(scope="module")
def ranker(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "text_ranking")).client


@pytest.fixture(scope="session")
def post() -> Post:
    def ask(client: TestClient, path: str, **body: Any) -> Any:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return ask


@pytest.fixture(scope="session")
def check_error() -> CheckError:
    def check(client: TestClient, path: str, body: Any, status: int, message: str, kind: str = "Validation") -> None:
        response = client.post(path, content=body if isinstance(body, str) else json.dumps(body))
        assert (response.status_code, response.json()) == (status, {"error": message, "error_type": kind})

    return check
