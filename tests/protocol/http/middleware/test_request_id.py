from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.http.middleware.request_id import echo_request_id, labelled, printable, request_id
from runners.core.log_labels import model_label
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
    assert (response.status_code, response.json()) == (500, {"error": "internal server error"})
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


@pytest.fixture
def labels() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(labelled(before))
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.parametrize(
    ("logger", "given", "message"),
    [
        ("protocol.openai", "abc", "50% of model (request_id=abc)"),
        ("runners", "abc", "50% of model (request_id=abc)"),
        ("runners.encoder.runner", "100%s", "50% of model (request_id=100%s)"),
        ("runners.encoder", "a\r\nb\x1b[1m\x85c", "50% of model (request_id=a??b?[1m?c)"),
        ("runners.encoder", "a" * 1000, f"50% of model (request_id={'a' * 128})"),
        ("runners.encoder", None, "50% of model"),
        ("protocols", "abc", "50% of model"),
        ("elsewhere.protocol", "abc", "50% of model"),
    ],
)
@pytest.mark.usefixtures("labels")
def test_log_records_carry_the_id(
    logger: str, given: str | None, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    token = request_id.set(given)
    try:
        logging.getLogger(logger).error("50%% of %s", "model")
    finally:
        request_id.reset(token)
    assert caplog.messages == [message]


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "slow (model=ner, version=2)"), ("abc", "slow (model=ner, version=2, request_id=abc)")],
)
@pytest.mark.usefixtures("labels")
def test_log_records_name_the_model(given: str | None, message: str, caplog: pytest.LogCaptureFixture) -> None:
    def log() -> None:
        model_label.set("ner, version=2")
        request_id.set(given)
        logging.getLogger("runners.encoder").error("slow")

    copy_context().run(log)
    assert caplog.messages == [message]


@pytest.mark.usefixtures("labels")
def test_a_failure_is_logged_with_the_id(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr("protocol.kserve_v1.routes.resolve_options", fail)
    headers = {"authorization": "Bearer key", "x-request-id": "abc-1"}
    client.post(PREDICT, json={"instances": ["a"]}, headers=headers)
    assert caplog.messages == ["a request failed: RuntimeError (request_id=abc-1)"]


@pytest.mark.parametrize(
    ("text", "printed"), [("a b-é_1", "a b-é_1"), ("a\nb", "a?b"), ("\x00\x7f\u2028", "???"), ("a" * 200, "a" * 128)]
)
def test_printable(text: str, printed: str) -> None:
    assert printable(text) == printed
