"""Answers of vLLM's application, which this server hands on."""

from __future__ import annotations

import logging
import re
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.openai.forwarding import Forwarded
from runners.core.admission import Admission
from runners.core.arguments import Arguments
from runners.generator.vllm.openai_application import VllmOpenAIApplication

SECRET = "a secret"


async def fail(_: Request) -> Response:
    raise RuntimeError(SECRET)


async def answer_500(_: Request) -> Response:
    return JSONResponse({"error": {"message": "the engine has no answer"}}, 500)


async def echo(request: Request) -> Response:
    return Response(await request.body())


async def stream(_: Request) -> Response:
    async def pieces() -> Any:
        yield b"first "
        raise RuntimeError(SECRET)

    return StreamingResponse(pieces())


async def show_error(_: Request, error: Exception) -> Response:
    """As vLLM does: the error's text is the answer, and Starlette raises the error again after it."""
    return JSONResponse({"error": {"message": str(error)}}, 500)


@pytest.fixture(scope="module")
def client() -> TestClient:
    paths = {"/fail": fail, "/500": answer_500, "/echo": echo, "/stream": stream}
    inner = FastAPI(routes=[Route(path, endpoint, methods=["POST"]) for path, endpoint in paths.items()])
    inner.add_exception_handler(Exception, show_error)
    application = VllmOpenAIApplication(inner, Admission(Arguments()))

    async def forward(request: Request) -> Response:
        return Forwarded(application, request.url.path, await request.body(), 0, "application/json")

    return TestClient(Starlette(routes=[Route("/{path}", forward, methods=["POST"])]))


def test_an_error_is_answered_with_its_reference(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    response = client.post("/fail")
    message = response.json()["error"]["message"]
    found = re.fullmatch(r"internal server error \(reference ([0-9a-f]{8})\)", message)
    assert response.status_code == 500
    assert found is not None, message
    [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert found[1] in line
    assert SECRET not in line


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [("/echo", 200, b"{}"), ("/500", 500, b'{"error":{"message":"the engine has no answer"}}')],
)
def test_what_vllm_answers_is_sent_on(client: TestClient, path: str, status: int, body: bytes) -> None:
    response = client.post(path, content=b"{}")
    assert (response.status_code, response.content) == (status, body)


def test_an_answer_that_has_begun_ends_with_the_connection(client: TestClient) -> None:
    with pytest.raises(RuntimeError, match=SECRET):
        client.post("/stream")
