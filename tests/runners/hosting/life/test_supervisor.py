"""The supervisor with workers that are sockets of the test, and real clients of the port."""

from __future__ import annotations

import contextlib
import errno
import json
import queue
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from runners.core.arguments import Arguments
from runners.core.probe_paths import LIVE_PATHS, READY_PATHS, ROOT_PATH
from runners.hosting.life import stand_in as stand_in_module
from runners.hosting.life.channel import encode_message
from runners.hosting.life.stand_in import StandIn
from runners.hosting.life.supervisor import SupervisedWorker, Supervisor
from tests.waiting import wait_until

READY = {"ready": True, "live": True, "open": True, "loading": False}
LOADING = {"ready": False, "live": True, "open": True, "loading": True}


def told(open: bool, stuck: bool = False, stand_in_is_open: bool = False) -> dict[str, bool]:  # noqa: A002
    """What a worker is told."""
    return {"open": open, "stuck": stuck, "stand_in_is_open": stand_in_is_open}


@dataclass(frozen=True)
class Parent:
    supervisor: Supervisor
    url: str
    ended: queue.SimpleQueue[SupervisedWorker]

    def adopt(self, pid: int) -> Worker:
        parent, worker = socket.socketpair()
        self.supervisor.adopt(pid, parent)
        return Worker(worker)


class Worker:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self._lines = channel.makefile("rb")

    def report(self, **report: Any) -> None:
        self.channel.sendall(encode_message(report))

    def read(self) -> Any:
        self.channel.settimeout(10)
        return json.loads(self._lines.readline())

    def leave(self) -> None:
        self._lines.close()
        self.channel.close()


@pytest.fixture
def parent() -> Iterator[Parent]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended: queue.SimpleQueue[SupervisedWorker] = queue.SimpleQueue()
        supervisor = Supervisor(StandIn(listener, Arguments(root_path="/models/ner")), ended.put)
        yield Parent(supervisor, f"http://127.0.0.1:{listener.getsockname()[1]}", ended)


def test_those_that_are_ready_accept_and_while_none_is_all_do(parent: Parent) -> None:
    first, second = parent.adopt(10**8), parent.adopt(10**8 + 1)
    assert [first.read(), second.read()] == [told(open=True, stand_in_is_open=True)] * 2
    first.report(**LOADING)
    assert [first.read(), second.read()] == [told(open=True)] * 2, "the stand-in is shut by then"
    second.report(**READY)
    assert first.read() == told(open=False)
    first.report(**{**READY, "open": False})
    assert first.read() == told(open=True)
    second.report(**{**READY, "live": False})
    assert [first.read(), second.read()] == [told(open=True, stuck=True), told(open=False, stuck=True)]
    second.leave()
    ended = parent.ended.get(timeout=10)
    assert (ended.pid, ended.was_ready, ended.was_frozen) == (10**8 + 1, True, False)
    assert first.read() == told(open=True, stand_in_is_open=True)


def test_the_stand_in_answers_while_nobody_accepts(parent: Parent) -> None:
    for path in (*LIVE_PATHS, ROOT_PATH, "/models/ner/livez", "/models/ner", "/livez/"):
        assert (httpx.get(parent.url + path).status_code, httpx.head(parent.url + path).status_code) == (200, 200)
    assert httpx.get(parent.url).json() == {"status": "alive"}
    for path in (*READY_PATHS, "/models/ner/readyz/"):
        answer = httpx.get(f"{parent.url}{path}?x=1")
        assert (answer.status_code, answer.json()) == (503, {"ready": False})
    answer = httpx.post(f"{parent.url}/v1/models/model:predict", content=b"x" * 2**21)
    assert (answer.status_code, answer.headers["retry-after"], answer.headers["connection"]) == (503, "2", "close")
    assert answer.json() == {"error": "no worker process of the server is ready; try again later"}
    # No request gets an answer that only probes want.
    assert [httpx.post(parent.url + path).status_code for path in ("/", "/livez", "/ping")] == [503] * 3
    parent.supervisor.drain()
    assert httpx.get(f"{parent.url}/v1/models").json() == {"error": "the server is shutting down"}


def test_the_log_tells_of_requests_that_no_worker_answered(parent: Parent, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/", "/livez", "/readyz", "/metrics", "/v2", "/v1/models", "/v2/models/model/infer"):
        httpx.get(parent.url + path)
    httpx.post(parent.url)
    worker = parent.adopt(10**8)
    assert worker.read() == told(open=True, stand_in_is_open=True)
    worker.report(**READY)
    assert worker.read() == told(open=True)
    worker.report(**{**READY, "open": False})
    assert worker.read() == told(open=True, stand_in_is_open=True)
    # A period with probes alone has no line.
    assert httpx.get(parent.url + "/livez").status_code == 200
    worker.report(**READY)
    assert worker.read() == told(open=True)
    [line] = caplog.messages
    assert re.fullmatch(r"no worker took requests for \d\.\d s, and 3 were answered with 503", line)


def test_the_stand_in_leaves_connections_to_workers(parent: Parent) -> None:
    """And takes them again from one that does not report any more."""
    worker = parent.adopt(10**8)
    worker.report(**READY)

    def is_answered() -> bool:
        try:
            return httpx.get(f"{parent.url}/livez", timeout=0.3).status_code == 200
        except httpx.ReadTimeout:
            return False

    wait_until(lambda: not is_answered(), 5)
    wait_until(is_answered, 10)


def test_workers_are_not_given_up_with_the_port(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stand-in cannot open, workers are told what they must do, and their ends are noticed."""

    def fail(_: socket.socket) -> Any:
        raise OSError(errno.EMFILE, "too many open files")

    worker = parent.adopt(10**8)
    worker.report(**READY)
    wait_until(lambda: worker.read() == told(open=True))
    monkeypatch.setattr(stand_in_module, "duplicate_listener", fail)
    worker.report(**{**READY, "open": False, "live": False})
    assert worker.read() == told(open=True, stuck=True)
    worker.leave()
    assert parent.ended.get(timeout=10).pid == 10**8


@pytest.mark.parametrize("sent", [b"", b"x" * 2**17, b"GET / HTTP/1.1\r\n"])
def test_the_stand_in_ends_connections_without_a_request(parent: Parent, sent: bytes) -> None:
    host, port = parent.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(100) == b""
