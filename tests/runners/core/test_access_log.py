from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.testclient import TestClient

from runners.core.access_log import describe_request, log_latency, make_access_log
from runners.core.request_record import Observer, RequestRecord, add_observer, remove_observer
from tests.conftest import ModelFolder, Serve
from tests.servers import ROOT

PREDICT = "/v1/models/model:predict"


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    add_observer(observer)
    try:
        yield
    finally:
        remove_observer(observer)


@pytest.fixture(scope="module")
def client(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(model_dir=model_folder("bert", "sequence_classification")).client


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
def test_kserve_s_line_a_request(
    client: TestClient, method: str, path: str, content: bytes | None, given: str | None, line: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    with caplog.at_level(logging.INFO, "runners"), observed(log_latency):
        client.request(method, path, content=content, headers={"x-request-id": given} if given else {})
    [message] = [record.getMessage() for record in caplog.records if record.name == "runners.core.access_log"]
    assert re.fullmatch(re.escape(line) + r", milliseconds: \d+\.\d{3}", message)


def test_the_access_line_of_an_answer(client: TestClient) -> None:
    lines: list[bytes] = []
    with observed(make_access_log(lines.append, {"worker": 1, "pid": 7}, True, "", False)):
        client.post(PREDICT, json={"instances": ["a", "b c"]}, headers={"x-request-id": "abc"})
        client.post(PREDICT, content=b"{")
        client.get("/v2/health/live")
        client.get("/metrics")
    answered, refused = map(json.loads, lines)
    assert answered.items() >= {
        "level": "info", "logger": "access", "worker": 1, "pid": 7, "protocol": "kserve_v1", "method": "POST",
        "route": "/v1/models/{name}:predict", "model": "model", "status": "200", "request_id": "abc", "texts": 2,
    }.items()  # fmt: skip
    assert answered["tokens"] >= 4
    phases = [answered[f"{phase}_ms"] for phase in ("read", "queue", "compute", "render")]
    assert 0 < sum(phases) <= answered["milliseconds"]
    assert (refused["status"], refused["refusal"]) == ("400", "input")
    assert "texts" not in refused


def test_probes_have_lines_at_debug(client: TestClient) -> None:
    lines: list[bytes] = []
    with observed(make_access_log(lines.append, {}, False, "service:1", True)):
        client.get("/v2/health/live", headers={"x-request-id": 'a "b"\n=c'})
        client.get("/metrics")
    health, metrics = (line.decode() for line in lines)
    assert re.match(r"\S+ \[INFO\] \[service:1\] protocol=\w+ method=GET route=/v2/health/live status=200 ", health)
    assert metrics.endswith("\n")


def test_the_page_has_every_field() -> None:
    record = RequestRecord("grpc", "/inference.GRPCInferenceService/ModelInfer", "gRPC")
    record.note_finish("stop")
    for name in RequestRecord.__slots__:
        if getattr(record, name) in (0, "", None, False):
            setattr(record, name, {"request_id": "a", "refusal": "input", "cancelled": True}.get(name, 1))
    page = (ROOT / "docs" / "reference" / "logs.md").read_text()
    table = page.partition("## The access line")[2].partition("\n## ")[0]
    assert [*re.findall(r"^\| `(\w+)`", table, re.MULTILINE)] == [*describe_request(record)]
