"""What surrounds a request: its id, its key, OPTIONS, the budget of bodies, and errors."""

from __future__ import annotations

import http.client

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from protocol.http.body import read_body
from protocol.http.body_budget import BodyBudget
from protocol.http.endpoints import Endpoints
from protocol.http.middleware.authentication import Access
from protocol.http.middleware.request_id import request_id
from protocol.http.request_pass import RequestPass
from runners.core.arguments import Arguments
from tests.protocol.http.conftest import StartUvicorn
from tests.waiting import wait_until

KEY = {"authorization": "Bearer client"}
BODY = b"x" * 50_000


async def tell_id(request: Request) -> Response:
    return PlainTextResponse(f"the endpoint has {request_id.get()}")


async def read(request: Request) -> Response:
    return PlainTextResponse(str((await read_body(request, Arguments())).size))


async def fail(request: Request) -> Response:
    raise RuntimeError("a bug")


async def answer_options(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("the options", headers={"allow": "GET"})(scope, receive, send)


def make_pass(arguments: Arguments) -> RequestPass:
    routes = [Route("/id", tell_id), Route("/read", read, methods=["POST"]), Route("/fail", fail)]
    return RequestPass(Endpoints({"server": routes}), answer_options, Access(arguments), BodyBudget(60_000))


def ask(
    port: int, method: str, path: str = "/id", headers: dict[str, str] | None = None, body: bytes | None = None
) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("arguments", "method", "headers", "status", "text"),
    [
        pytest.param({}, "GET", {}, 200, "the endpoint has None", id="nothing asked"),
        pytest.param({}, "GET", {"x-request-id": "a1"}, 200, "the endpoint has a1", id="an id"),
        pytest.param({}, "OPTIONS", {}, 200, "the options", id="options"),
        pytest.param({"api_key": "client"}, "GET", KEY, 200, "the endpoint has None", id="a key"),
        pytest.param({"api_key": "client"}, "GET", {}, 401, "asks for a key", id="no key"),
        pytest.param(
            {"api_key": "client"}, "GET", {"x-request-id": "a1"}, 401, "asks for a key", id="an id and no key"
        ),
        pytest.param({"api_key": "client"}, "OPTIONS", {}, 200, "the options", id="a preflight has no key"),
    ],
)
def test_a_request_gets_what_its_headers_ask_for(
    arguments: dict[str, str], method: str, headers: dict[str, str], status: int, text: str, start_uvicorn: StartUvicorn
) -> None:
    port = start_uvicorn(make_pass(Arguments.model_validate(arguments)))
    found, answered, said = ask(port, method, headers=headers)
    assert (found, text in said) == (status, True)
    assert answered.get("x-request-id") == headers.get("x-request-id")


def test_a_body_takes_its_bytes_of_the_budget_and_gives_them_back(start_uvicorn: StartUvicorn) -> None:
    application = make_pass(Arguments())
    port = start_uvicorn(application)
    for _ in range(3):
        assert ask(port, "POST", "/read", body=BODY)[::2] == (200, str(len(BODY)))
        wait_until(lambda: application.budget.left == application.budget.most)
    assert ask(port, "POST", "/read", body=2 * BODY)[0] == 503
    wait_until(lambda: application.budget.left == application.budget.most)


def test_an_error_is_answered_and_the_connection_lives_on(start_uvicorn: StartUvicorn) -> None:
    port = start_uvicorn(make_pass(Arguments()))
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for path, status in (("/fail", 500), ("/id", 200)):
        connection.request("GET", path, headers={"x-request-id": "a1"})
        answer = connection.getresponse()
        assert (answer.status, answer.headers["x-request-id"]) == (status, "a1")
        assert b"a bug" not in answer.read()
    connection.close()
