"""One connection, an error, the next request on it: over real sockets."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import uvicorn

from protocol.application import create_application
from protocol.http.connections.uvicorn_settings import bound_connections
from protocol.http.middleware import unread_bodies as connection
from runners.core.arguments import Arguments
from runners.core.errors import InputError, OverloadedError
from runners.core.predictions import MAIN, Numbers, Options, Prediction, TextInput
from runners.core.task import Task
from tests.served import models_of
from tests.waiting import wait_until

LIMIT = 100_000
PREDICT = "/v1/models/model:predict"
JSON = {"content-type": "application/json"}
LARGE = b'{"instances": ["' + b"a" * 3 * LIMIT + b'"]}'


class ScriptedRunner:
    """Answers each text as it says; what a request needs of a runner."""

    name = "model"
    names = ("model",)
    task = Task.SEQUENCE_CLASSIFICATION
    generator = None
    failed = False
    default_options = Options()
    ready = True

    async def infer(self, texts: Sequence[TextInput], options: Options) -> list[Prediction]:
        match texts[0].text:
            case "overloaded":
                raise OverloadedError("too much", 1.0)
            case "input":
                raise InputError("no such text")
            case "broken":
                raise RuntimeError("a bug")
        return [Prediction({MAIN: Numbers(np.asarray(len(text.text)))}) for text in texts]


class LoadingRunner(ScriptedRunner):
    name = "loading"
    names = ("loading",)
    ready = False


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    runners: list[Any] = [ScriptedRunner(), LoadingRunner()]
    arguments = Arguments(max_request_bytes=LIMIT, api_key=("key",))
    application = create_application(models_of(*runners), arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", "")
        bound_connections(arguments)
        server = uvicorn.Server(uvicorn.Config(application, port=0, log_level="critical"))
        server.config.load()
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join()


@contextlib.contextmanager
def connect(port: int) -> Iterator[http.client.HTTPConnection]:
    made = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    made.connect()
    yield made
    made.close()


def chunks(body: bytes) -> Iterator[bytes]:
    for start in range(0, len(body), 16384):
        yield body[start : start + 16384]


def ask(text: str) -> bytes:
    return json.dumps({"instances": [text]}).encode()


ERRORS: list[tuple[str, str, str, bytes | None, dict[str, str], int]] = [
    ("malformed", "POST", PREDICT, b"{", JSON, 400),
    ("empty", "POST", PREDICT, b"", JSON, 400),
    ("input", "POST", PREDICT, ask("input"), JSON, 400),
    ("corrupt gzip", "POST", PREDICT, b"{}", {"content-encoding": "gzip"}, 400),
    ("truncated gzip", "POST", PREDICT, gzip.compress(ask("four"))[:-9], {"content-encoding": "gzip"}, 400),
    ("no key", "POST", PREDICT, LARGE, {"authorization": "none"}, 401),
    ("nowhere", "GET", "/nowhere", None, {}, 404),
    ("nowhere with a body", "POST", "/nowhere", LARGE, JSON, 404),
    ("no such model", "POST", "/v2/models/nope/infer", LARGE, JSON, 404),
    ("method", "GET", PREDICT, None, {}, 405),
    ("method with a body", "PUT", PREDICT, LARGE, JSON, 405),
    ("router's method with a body", "DELETE", "/v2", LARGE, JSON, 405),
    ("large", "POST", PREDICT, LARGE, JSON, 413),
    ("bomb", "POST", PREDICT, gzip.compress(LARGE), {"content-encoding": "gzip"}, 413),
    ("media type", "POST", PREDICT, LARGE, {"content-type": "text/xml"}, 415),
    ("encoding", "POST", PREDICT, LARGE, {"content-encoding": "br"}, 415),
    ("overload", "POST", PREDICT, ask("overloaded"), JSON, 429),
    ("failure", "POST", PREDICT, ask("broken"), JSON, 500),
    ("explain", "POST", "/v1/models/model:explain", LARGE, JSON, 501),
    ("loading", "POST", "/v1/models/loading:predict", LARGE, JSON, 503),
    ("not ready", "GET", "/v2/health/ready", None, {}, 503),
    ("body of a GET", "GET", "/v2/health/live", LARGE, {}, 200),
    ("OPTIONS with a body", "OPTIONS", PREDICT, LARGE, {}, 204),
    ("HEAD", "HEAD", "/nowhere", None, {}, 404),
]


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS]
)
@pytest.mark.parametrize("chunked", [False, True])
def test_the_connection_answers_the_next_request(
    port: int, method: str, path: str, body: bytes | None, headers: dict[str, str], status: int, chunked: bool
) -> None:
    with connect(port) as client:
        used = client.sock
        for _ in range(2):
            content: Any = chunks(body) if chunked and body is not None else body
            client.request(method, path, content, {"authorization": "Bearer key"} | headers, encode_chunked=chunked)
            response = client.getresponse()
            response.read()
            assert (response.status, response.getheader("connection")) == (status, None)
            client.request("POST", PREDICT, ask("four"), JSON | {"authorization": "Bearer key"})
            answer = client.getresponse()
            assert (answer.status, json.loads(answer.read())) == (200, {"predictions": [4]})
            assert client.sock is used


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("path", [PREDICT, "/nowhere"])
def test_a_body_that_is_too_much_to_drain_ends_the_connection_as_announced(
    port: int, path: str, chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gets the answer although it sends on."""
    monkeypatch.setattr(connection, "DRAINED_BYTES", 200_000)
    body = b" " * 20_000_000
    with connect(port) as client:
        content: Any = chunks(body) if chunked else body
        client.request("POST", path, content, JSON | {"authorization": "Bearer key"}, encode_chunked=chunked)
        response = client.getresponse()
        assert (response.status, response.getheader("connection")) == (413 if path == PREDICT else 404, "close")
        assert set(json.loads(response.read())) == {"error"}


@pytest.mark.parametrize(
    ("headers", "most_seconds"), [("transfer-encoding: chunked", 2), (f"content-length: {2**40}", 0.3)]
)
def test_a_body_that_does_not_come_is_not_waited_for(
    port: int, headers: str, most_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_BODY_REST_SECONDS", 0.3)
    monkeypatch.setattr(connection, "_LINGER_SECONDS", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        started = time.monotonic()
        client.sendall(f"POST /nowhere HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\n{headers}\r\n\r\n".encode())
        head = client.recv(65536)
        assert time.monotonic() - started < most_seconds
        assert head.startswith(b"HTTP/1.1 404")
        assert b"\r\nconnection: close\r\n" in head
        while client.recv(65536):
            pass


def test_a_large_body_is_refused_before_it_is_sent(port: int) -> None:
    with connect(port) as client:
        client.putrequest("POST", PREDICT)
        for name, value in {"authorization": "Bearer key", "content-length": str(LIMIT * 10)}.items():
            client.putheader(name, value)
        client.endheaders()
        response = client.getresponse()
        assert (response.status, response.getheader("connection")) == (413, None)


def exchange(port: int, request: bytes) -> bytes:
    """What comes back until the server has nothing more to say."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        received = b""
        while chunk := client.recv(65536):
            received += chunk
    return received


def test_options_of_the_server(port: int) -> None:
    answer = exchange(port, b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 204")
    assert b"\r\nallow: GET, HEAD, OPTIONS, POST\r\n" in answer


def test_pipelined_requests_have_their_own_ids(port: int) -> None:
    """The second starts in the context of the first."""
    first = b"GET / HTTP/1.1\r\nhost: x\r\nx-request-id: one\r\n\r\n"
    second = b"GET /nowhere HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key\r\nconnection: close\r\n\r\n"
    answer = exchange(port, first + second)
    assert answer.count(b"HTTP/1.1 ") == 2
    assert answer.count(b"x-request-id: one") == 1


@pytest.mark.parametrize("value", [b"a\x01b", b"a\x7fb", b"a\xffb", b"a" * 5000, b"a\tb"])
def test_ids_that_are_no_text(port: int, value: bytes) -> None:
    """They come back as they are, unless the parser refuses them."""
    answer = exchange(port, b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: " + value + b"\r\n\r\n")
    if value in (b"a\x01b", b"a\x7fb") and answer.startswith(b"HTTP/1.1 400"):
        return
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"x-request-id: " + value + b"\r\n" in answer
