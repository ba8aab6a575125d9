from __future__ import annotations

import logging
import time
from http import HTTPStatus

import pytest

from protocol.http.connections.refusals import RefusalLog, refuse_with


def test_a_flood_is_one_line(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    log = RefusalLog()
    with caplog.at_level(logging.WARNING):
        for _ in range(1000):
            log.add("slow")
        log.add("large")
        assert caplog.messages == ["closed connections: 1 x slow"]
        now += 10
        log.write()
        log.write()
        assert caplog.messages[1:] == ["closed connections: 999 x slow; 1 x large"]


def test_an_answer_is_a_whole_response() -> None:
    answer = refuse_with(HTTPStatus.SERVICE_UNAVAILABLE, "full", 3).answer
    assert answer == (
        b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\ncontent-length: 16\r\n"
        b'connection: close\r\nretry-after: 3\r\n\r\n{"error":"full"}'
    )
