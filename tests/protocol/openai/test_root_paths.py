"""The root's paths where vLLM runs the model: vLLM answers them, in words that it understands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.application import create_application
from runners.core.admission import Admission
from runners.core.arguments import Arguments
from runners.generator.runner import GeneratorRunner
from runners.generator.vllm.openai_application import VllmOpenAIApplication
from tests.served import models_of


@pytest.fixture(scope="module")
def on_vllm() -> TestClient:
    """A server whose only model is on vLLM, which tells what it got; it has no /embeddings."""

    async def tell(request: Request) -> Response:
        return JSONResponse({"path": request.url.path, "body": await request.json()})

    async def show_available_models() -> Any:
        return SimpleNamespace(model_dump=lambda mode: {"data": []})

    paths = ("/v1/embeddings", "/rerank", "/score", "/classify", "/pooling")
    inner = FastAPI(routes=[Route(path, tell, methods=["POST"]) for path in paths])
    inner.state.openai_serving_models = SimpleNamespace(show_available_models=show_available_models)

    class Runner(GeneratorRunner):
        ready = True
        max_length = 512
        openai_application = VllmOpenAIApplication(inner, Admission(Arguments()))

    arguments = Arguments()
    return TestClient(create_application(models_of(Runner(arguments)), arguments))


@pytest.mark.parametrize(
    ("path", "at_vllm"),
    [
        ("/embeddings", "/v1/embeddings"), ("/openai/embeddings", "/v1/embeddings"), ("/score", "/score"),
        ("/classify", "/classify"), ("/pooling", "/pooling"), ("/v1/classify", "/classify"), ("/rerank", "/rerank"),
    ],
)  # fmt: skip
def test_paths(path: str, at_vllm: str, on_vllm: TestClient) -> None:
    body = {"input": "x", "query": "x", "documents": ["x"]}
    assert on_vllm.post(path, json=body).json() == {"path": at_vllm, "body": body}


@pytest.mark.parametrize(("tokens", "sent"), [(4096, 0), (512, 0), (511, 511), (0, 0), (None, None)])
def test_limits_that_the_model_has_anyway(tokens: int | None, sent: int | None, on_vllm: TestClient) -> None:
    """vLLM refuses them, and they are some clients' defaults."""
    limits = {} if tokens is None else {"max_tokens_per_doc": tokens, "max_tokens_per_query": tokens}
    body = on_vllm.post("/rerank", json={"query": "x", "documents": ["x"], **limits}).json()["body"]
    assert body == {"query": "x", "documents": ["x"], **dict.fromkeys(limits, sent)}
