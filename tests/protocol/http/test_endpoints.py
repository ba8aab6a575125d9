from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.http import endpoints
from protocol.http.endpoints import Endpoints
from protocol.http.errors import NotFoundError
from runners.core.errors import InputError

ERRORS = {
    "protocol": NotFoundError("no such thing"),
    "runner": InputError("no such text"),
    "starlette": HTTPException(418, "a teapot"),
    "gone": ClientDisconnect(),
    "bug": RuntimeError("a bug"),
}


async def name(request: Request) -> Response:
    return Response(f"{request.method} {request.path_params['name']}")


async def versions(request: Request) -> Response:
    return Response(f"version {request.path_params['version']}")


async def fail(request: Request) -> Response:
    raise ERRORS[request.path_params["error"]]


class Unsendable(Response):
    async def __call__(self, *_: object) -> None:
        raise InputError("it cannot be sent")


async def unsendable(_: Request) -> Response:
    return Unsendable()


async def broken(_: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"a"
        raise InputError("too late")

    return StreamingResponse(chunks())


@pytest.fixture
def client() -> TestClient:
    routes = [
        Route("/models/{name}/versions/{version}", versions),
        Route("/models/{name:path}", name),
        Route("/models/{name:path}", versions, methods=["DELETE"]),
        Route("/errors/{error}", fail),
        Route("/unsendable", unsendable),
        Route("/broken", broken),
    ]
    return TestClient(Endpoints({"server": routes}), follow_redirects=False)


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/models/a", 200, "GET a"),
        ("GET", "/models/b", 200, "GET b"),
        ("HEAD", "/models/a", 200, ""),
        # The first route wins, also where a later one matches too.
        ("GET", "/models/a/versions/2", 200, "version 2"),
        ("GET", "/models/a/versions/2/more", 200, "GET a/versions/2/more"),
        ("GET", "/models/" + "a" * 1000, 200, "GET " + "a" * 1000),
        # What no route takes.
        ("PUT", "/models/a", 405, None),
        ("GET", "/nothing", 404, None),
        ("GET", "/broken/", 404, None),
    ],
)
def test_routes(client: TestClient, method: str, path: str, status: int, text: str | None) -> None:
    # The second time the path is known.
    for _ in range(2):
        response = client.request(method, path)
        assert response.status_code == status
        assert text is None or response.text == text


def test_few_paths_are_remembered(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints, "_MOST_PATHS", 2)
    application = client.app
    assert isinstance(application, Endpoints)
    for path in ("/models/a", "/models/b", "/models/c", "/models/" + "a" * 1000):
        assert client.get(path).status_code == 200
    assert [path for _, path in application._found] == ["/models/b", "/models/c"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("/errors/protocol", 404, "no such thing"),
        ("/errors/runner", 400, "no such text"),
        ("/errors/starlette", 418, "a teapot"),
        ("/unsendable", 400, "it cannot be sent"),
    ],
)
def test_errors(client: TestClient, path: str, status: int, message: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.json()) == (status, {"error": message})


def test_unexpected_errors_are_logged(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    for path in ("/errors/bug", "/errors/gone", "/errors/runner"):
        client.get(path)
    [message] = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    reference = re.fullmatch(r"a request failed: RuntimeError \(reference ([0-9a-f]{8})\)", message)
    assert reference is not None
    # The error is the same object, as that of a batch is: it is logged once.
    answer = client.get("/errors/bug")
    assert (answer.status_code, answer.json()) == (500, {"error": f"internal server error (reference {reference[1]})"})


def test_an_error_after_the_answer_has_begun_ends_the_connection(client: TestClient) -> None:
    with pytest.raises(InputError, match="too late"):
        client.get("/broken")
