"""The playground's page at its own path and at the root."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from protocol.application import create_application
from protocol.http.direct import route_directly
from protocol.playground.page import Page, load_page
from runners.core.models import Models
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import ModelFolder, Serve
from tests.served import Served

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
ALIVE = {"status": "alive"}


def page_of(path: str) -> Page:
    """What a path answers: at the playground's own, the server is beside the page."""
    return load_page("../" if "/playground" in path else "./")


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, serve: Serve) -> Served:
    return serve(model_dir=model_folder("bert", "fill_mask"), api_key="secret")


@pytest.mark.parametrize(("path", "headers"), [("/playground", {}), ("/playground", BROWSER), ("/", BROWSER)])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_the_page_needs_no_key(method: str, path: str, headers: dict[str, str], served: Served) -> None:
    response = served.client.request(method, path, headers=headers)
    page = page_of(path)
    assert (response.status_code, response.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert response.content == (page.body if method == "GET" else b"")
    assert {name: response.headers[name] for name in page.headers} == page.headers
    assert ("accept" in response.headers["vary"].lower().split(", ")) == (path == "/")


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/html"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_other_clients_get_json_at_the_root(method: str, accept: str, served: Served) -> None:
    response = served.client.request(method, "/", headers={"accept": accept})
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.headers["vary"] == "Accept"
    if method == "GET":
        assert response.json() == ALIVE


def test_a_client_without_accept_gets_json(served: Served) -> None:
    del served.client.headers["accept"]
    try:
        assert served.client.get("/").json() == ALIVE
    finally:
        served.client.headers["accept"] = "*/*"


@pytest.mark.parametrize(("path", "headers"), [("/playground", {}), ("/", BROWSER)])
def test_a_browser_that_has_the_page(path: str, headers: dict[str, str], served: Served) -> None:
    tag = page_of(path).headers["etag"]
    strong = tag.removeprefix("W/")
    for known, status in [(tag, 304), (f'"other", {tag}', 304), (strong, 304), ("*", 304), ('"other"', 200)]:
        response = served.client.get(path, headers={**headers, "if-none-match": known})
        assert (response.status_code, response.headers["etag"]) == (status, tag)
        assert not response.content or status == 200


@pytest.mark.parametrize("accept", ["*/*", BROWSER["accept"]])
def test_a_server_that_is_stuck_says_so_to_everybody(
    accept: str, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Models, "live", False)
    response = served.client.get("/", headers={"accept": accept})
    assert (response.status_code, response.json()) == (503, {"status": "stuck"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/playground", 401), ("POST", "/", 401), ("GET", "/playground/x", 401), ("GET", "/Playground", 401)],
)
def test_what_needs_a_key_still(method: str, path: str, status: int, served: Served) -> None:
    assert served.client.request(method, path, headers=BROWSER).status_code == status


def test_methods(served: Served) -> None:
    assert served.client.options("/playground").headers["allow"] == "GET, HEAD, OPTIONS"
    assert served.client.options("/").headers["allow"] == "GET, HEAD, OPTIONS, POST"
    response = served.client.post("/playground", headers={"authorization": "Bearer secret"})
    assert (response.status_code, {*response.headers["allow"].split(", ")}) == (405, {"GET", "HEAD"})


def test_off(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask"), enable_playground=False).client
    assert client.get("/playground").status_code == 404
    response = client.get("/", headers=BROWSER)
    assert (response.json(), "vary" in response.headers) == (ALIVE, False)
    assert "/playground" not in client.get("/openapi.json").json()["paths"]


def test_the_document_lists_it(served: Served) -> None:
    assert "/playground" in served.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("path", ["/playground", "/playground/", "/team/ner/playground", "/team/ner/", "/team/ner"])
def test_behind_a_prefix(path: str, served: Served) -> None:
    """The page says from where it finds the server; `tests/playground/test_start.py` shows that it does."""
    application = create_application(served.models, served.arguments)
    client = TestClient(route_directly(application, application, served.models, "/team/ner"))
    assert client.get(path, headers=BROWSER).content == page_of(path).body


@pytest.mark.parametrize(
    ("path", "headers", "located"),
    [
        ("/playground", {}, ("server", "/playground")),
        ("/", BROWSER, ("server", "/")),
        ("/", {}, ("kserve_v1", "/")),
    ],
)
def test_names_in_metrics_and_logs(path: str, headers: dict[str, str], located: Any, served: Served) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    served.client.get(path, headers=headers)
    remove_observer(records.append)
    [record] = records
    assert (record.protocol, record.route) == located
