from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.http.middleware.request_id import echo_request_id, request_id
from tests.conftest import GeneratorFolder, ModelFolder, Serve

PREDICT = "/v1/models/model:predict"


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    folder = model_folder("bert", "sequence_classification")
    return serve(model_dir=folder, max_request_bytes=5000, api_key="key").client


@pytest.mark.parametrize(
    ("method", "path", "key", "content", "status"),
    [
        ("GET", "/v2/health/live", None, None, 200),
        ("HEAD", "/v2/health/live", None, None, 200),
        ("OPTIONS", PREDICT, None, None, 204),
        ("POST", PREDICT, "key", b'{"instances": ["a"]}', 200),
        ("POST", PREDICT, "key", b"{", 400),
        ("POST", PREDICT, "wrong", b"{", 401),
        ("GET", "/nowhere", "key", None, 404),
        ("PUT", PREDICT, "key", None, 405),
        ("POST", PREDICT, "key", b" " * 6000, 413),
        ("POST", "/v1/models/model:explain", "key", None, 501),
        ("POST", "/openai/v1/completions", "key", b"{}", 400),
    ],
)
def test_the_id_is_on_every_answer(
    client: TestClient, method: str, path: str, key: str | None, content: bytes | None, status: int
) -> None:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    response = client.request(method, path, content=content, headers=headers | {"x-request-id": "abc-1"})
    assert (response.status_code, response.headers.get_list("x-request-id")) == (status, ["abc-1"])
    assert "x-request-id" not in client.request(method, path, content=content, headers=headers).headers


def test_a_failure_has_the_id(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr("protocol.kserve_v1.routes.resolve_options", fail)
    response = client.post(
        PREDICT, json={"instances": ["a"]}, headers={"authorization": "Bearer key", "x-request-id": "abc-1"}
    )
    assert response.status_code == 500
    assert re.fullmatch(r"internal server error \(reference [0-9a-f]{8}\)", response.json()["error"])
    assert response.headers["x-request-id"] == "abc-1"


def test_a_stream_has_the_id(generator_folder: GeneratorFolder, serve: Serve) -> None:
    client = serve(model_dir=generator_folder("gpt2"), backend="huggingface").client
    body = {"text_input": "Return", "parameters": {"max_tokens": 2}}
    response = client.post("/v2/models/model/generate_stream", json=body, headers={"x-request-id": "abc-1"})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-request-id"] == "abc-1"


@pytest.mark.parametrize(
    ("headers", "seen", "echoed"),
    [
        ([], None, []),
        ([(b"x-request-id", b"")], None, []),
        ([(b"x-request-id", b"abc")], "abc", [b"abc"]),
        ([(b"x-request-id", b"\xe9")], "\xe9", [b"\xe9"]),
        ([(b"x-request-id", b"first"), (b"x-request-id", b"second")], "first", [b"first"]),
    ],
)
async def test_the_variable(headers: list[tuple[bytes, bytes]], seen: str | None, echoed: list[bytes]) -> None:
    """It is the request's own, whatever was set around it, and set for its time only."""
    found: list[str | None] = []
    sent: list[Any] = []

    async def app(_: Any, __: Any, send: Any) -> None:
        found.append(request_id.get())
        found.append(await asyncio.to_thread(request_id.get))
        # vLLM's own middleware may have set it.
        await send({"type": "http.response.start", "status": 200, "headers": headers[:1]})

    async def send(message: Any) -> None:
        sent.append(message)

    request_id.set("around")
    await echo_request_id(app, {"type": "http", "headers": headers}, None, send)  # type: ignore[arg-type]
    assert request_id.get() == "around"
    assert found == [seen, seen]
    assert [value for _, value in sent[0]["headers"] if value] == echoed
