from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.application import create_application
from runners.core.admission import Admission
from runners.core.arguments import Arguments
from runners.generator.runner import GeneratorRunner
from runners.generator.vllm.openai_application import VllmOpenAIApplication
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.served import models_of

GET, POST = "GET, HEAD, OPTIONS", "OPTIONS, POST"
PATHS = [
    ("/", "GET, HEAD, OPTIONS, POST"),
    ("/models/model", POST),
    ("/models/model/pipeline/text-classification", POST),
    ("/pipeline/text-classification", POST),
    ("/metrics", GET),
    ("/v1/models", GET),
    ("/v1/models/model", GET),
    ("/v1/models/model:predict", POST),
    ("/v1/models/model:explain", POST),
    ("/v2", GET),
    ("/v2/health/live", GET),
    ("/v2/health/ready", GET),
    ("/v2/models", GET),
    ("/v2/models/model", GET),
    ("/v2/models/model/ready", GET),
    ("/v2/models/model/versions/1", GET),
    ("/v2/models/model/versions/1/ready", GET),
    ("/v2/models/model/infer", POST),
    ("/v2/models/model/versions/1/infer", POST),
    ("/v2/models/model/generate", POST),
    ("/v2/repository/index", POST),
    ("/v2/repository/models/model/unload", POST),
    ("/openai/v1/models", GET),
    ("/openai/v1/models/model", GET),
    ("/openai/v1/completions", POST),
    ("/v1/chat/completions", POST),
]
MISSING = [
    ("/nowhere", "there is nothing at /nowhere; the protocols are under /v1 and /v2"),
    ("/v1/models/nope", "Model with name nope does not exist. This server has model."),
    ("/models/nope", "Model with name nope does not exist. This server has model."),
    ("/v1/models/nope:predict", "Model with name nope does not exist. This server has model."),
    ("/v1/models/model:classify", "Model with name model:classify does not exist. This server has model."),
    ("/v2/repository/models/nope/load", "Model with name nope does not exist. This server has model."),
    ("/v2/models/nope/infer", "Model with name nope does not exist. This server has model."),
    ("/v2/models/model/versions/7/infer", "Model model has no version 7; it has version 1."),
    ("/v2/models/model/versions/7", "Model model has no version 7; it has version 1."),
]


@pytest.fixture(scope="module", params=[None, "key"])
def client(model_folder: ModelFolder, serve: Serve, request: pytest.FixtureRequest) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification"), api_key=request.param).client


@pytest.mark.parametrize(("path", "allowed"), PATHS)
def test_options(client: TestClient, path: str, allowed: str) -> None:
    response = client.options(path)
    assert (response.status_code, response.headers["allow"], response.content) == (204, allowed, b"")
    assert "content-length" not in response.headers


@pytest.mark.parametrize(("path", "error"), MISSING)
def test_options_where_there_is_nothing(client: TestClient, path: str, error: str) -> None:
    response = client.options(path)
    assert (response.status_code, response.json()) == (404, {"error": error})
    assert "allow" not in response.headers


def test_a_long_error_is_not_compressed(client: TestClient) -> None:
    response = client.options("/" + "界" * 1000, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in response.headers
    assert response.json()["error"].startswith("there is nothing at /界")


def test_options_of_openai_where_there_is_nothing(client: TestClient) -> None:
    response = client.options("/openai/v1/nowhere")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize("path", [path for path, allowed in PATHS if allowed == GET])
def test_head(client: TestClient, path: str) -> None:
    headers = {"authorization": "Bearer key"}
    head, get = client.head(path, headers=headers), client.get(path, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    if path != "/metrics":
        assert head.headers == get.headers
    assert head.headers["content-type"] == get.headers["content-type"]


@pytest.mark.parametrize("path", [path for path, allowed in PATHS if allowed == POST])
def test_head_of_what_is_posted(client: TestClient, path: str) -> None:
    response = client.head(path, headers={"authorization": "Bearer key"})
    assert (response.status_code, response.headers["allow"], response.content) == (405, "POST", b"")


def test_a_model_that_is_not_loaded_has_its_paths(model_folder: ModelFolder) -> None:
    runner = GeneratorRunner(Arguments())
    client = TestClient(create_application(models_of(runner), Arguments()))
    assert client.options("/v2/models/model").headers["allow"] == GET
    assert client.options("/v1/models/model:predict").headers["allow"] == POST


PREFLIGHT = {"origin": "https://here.example", "access-control-request-method": "POST"}


@pytest.fixture(scope="module")
def on_vllm(generator_folder: GeneratorFolder, serve: Serve) -> Any:
    """A server whose model seems to run on vLLM: an application with its CORS middleware; the real one is slow to
    start, and tests/test_generation.py has it."""

    async def complete(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "method": request.method})

    async def show_available_models() -> Any:
        return SimpleNamespace(model_dump=lambda mode: {"data": []})

    inner = FastAPI(
        routes=[Route("/v1/completions", complete, methods=["POST"]), Route("/v1/responses/{id}", complete)],
        # As vLLM has it.
        middleware=[Middleware(CORSMiddleware, allow_origins=[], allow_methods=["*"])],
    )
    inner.state.openai_serving_models = SimpleNamespace(show_available_models=show_available_models)
    # FastAPI's routes have no HEAD.
    for route in inner.routes:
        assert isinstance(route, Route)
        assert route.methods is not None
        route.methods.discard("HEAD")

    class Runner(GeneratorRunner):
        ready = True
        openai_application = VllmOpenAIApplication(inner, Admission(Arguments()))

    arguments = Arguments(api_key=("key",))
    return TestClient(create_application(models_of(Runner(arguments)), arguments))


@pytest.mark.parametrize(
    ("path", "headers", "allowed"),
    [
        ("/v1/completions", {}, POST),
        ("/v1/completions", PREFLIGHT, POST),
        ("/openai/v1/responses/1", {}, GET),
        ("/openai/v1/responses/1", PREFLIGHT, GET),
        ("/v1/models/model:predict", PREFLIGHT, POST),
        ("/v2/models/model/infer", PREFLIGHT, POST),
        ("/v1/models", PREFLIGHT, GET),
    ],
)
def test_options_are_never_vllms_to_answer(
    on_vllm: TestClient, path: str, headers: dict[str, str], allowed: str
) -> None:
    response = on_vllm.options(path, headers=headers)
    assert (response.status_code, response.headers["allow"]) == (204, allowed)


def test_head_reaches_vllm_as_get(on_vllm: TestClient) -> None:
    response = on_vllm.head("/openai/v1/responses/1", headers={"authorization": "Bearer key"})
    assert (response.status_code, response.content) == (200, b"")
