from __future__ import annotations

import logging
import re

import pytest
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve

PREDICT = "/v1/models/model:predict"


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification"), enable_latency_logging=True).client


@pytest.mark.parametrize(
    ("method", "path", "content", "given", "line"),
    [
        ("POST", PREDICT, b'{"instances": ["a secret"]}', "abc", f"requestId: abc, method: POST, path: {PREDICT}, status: 200"),
        ("POST", f"{PREDICT}?secret=1", b"{", None, f"requestId: N.A., method: POST, path: {PREDICT}, status: 400"),
        ("GET", "/nowhere", None, "a" * 200, f"requestId: {'a' * 128}, method: GET, path: /nowhere, status: 404"),
        ("GET", "/no%0Awhere", None, None, "requestId: N.A., method: GET, path: /no?where, status: 404"),
        ("HEAD", "/", None, None, "requestId: N.A., method: HEAD, path: /, status: 200"),
    ],
)  # fmt: skip
def test_one_line_a_request(
    client: TestClient, method: str, path: str, content: bytes | None, given: str | None, line: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.INFO, "protocol"):
        client.request(method, path, content=content, headers={"x-request-id": given} if given else {})
    [message] = [record.getMessage() for record in caplog.records if record.name == "protocol.http.middleware.latency"]
    assert re.fullmatch(re.escape(line) + r", milliseconds: \d+\.\d{3}", message)


def test_off_by_default(model_folder: ModelFolder, serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    client = serve(model_dir=model_folder("bert", "sequence_classification")).client
    with caplog.at_level(logging.INFO, "protocol"):
        client.get("/")
    assert not [record for record in caplog.records if record.name == "protocol.http.middleware.latency"]
