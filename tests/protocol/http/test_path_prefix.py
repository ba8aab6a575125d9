"""Paths with and without a prefix and a slash at the end: the same answers, and no redirect."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from protocol.application import create_routes
from protocol.context import check_root_path, make_context, normalize_prefix
from protocol.http.path_prefix import PathPrefix, find_prefix
from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from tests.conftest import ModelFolder, Serve
from tests.served import Served

PREFIX = "/models/ner"


@pytest.fixture(scope="module")
def served(serve: Serve, model_folder: ModelFolder) -> Served:
    return serve(model_dir=model_folder("bert", "text_embedding"), enable_repository=False)


@pytest.fixture(scope="module")
def client(served: Served) -> TestClient:
    return TestClient(PathPrefix(served.client.app, PREFIX), follow_redirects=False, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def paths(served: Served) -> list[str]:
    """A path of each route."""
    by_protocol = create_routes(make_context(served.models, served.arguments))
    routes = [route for each in by_protocol.values() for route in each]
    found = {re.sub(r"{(\w+)(:path)?}", lambda match: FILLINGS[match[1]], route.path) for route in routes}
    assert len(found) > 40
    return sorted(found)


FILLINGS = {
    "name": "model",
    "version": "1",
    "verb": "predict",
    "path": "v1/none",
    "id": "none",
    "repository": "none",
    "task": "fill-mask",
}


def describe(response: Any) -> tuple[int, str]:
    """The answer without what differs by request."""
    body = response.text
    # Numbers of metrics, ids and times of OpenAI's answers.
    body = re.sub(r'"(id|created)":("[^"]*"|\d+)', "", re.sub(r"^(\w+)(\{.*\})? .*$", r"\1", body, flags=re.MULTILINE))
    return response.status_code, body


def test_every_route_answers_alike(client: TestClient, paths: list[str]) -> None:
    for path in paths:
        for method in ("GET", "POST", "OPTIONS"):
            expected = describe(client.request(method, path, content=b'{"instances": ["a"]}'))
            assert not 300 <= expected[0] < 400, path
            variants = [f"{PREFIX}{path}", *([] if path == "/" else [f"{path}/", f"{PREFIX}{path}/"])]
            for variant in variants:
                if path in ("/docs", "/metrics"):
                    # Its links differ, or its series.
                    assert client.request(method, variant).status_code == expected[0]
                else:
                    answered = describe(client.request(method, variant, content=b'{"instances": ["a"]}'))
                    assert answered == expected, (method, variant)


@given(st.text("abv12/:.%{}~", min_size=0, max_size=12), st.sampled_from(["GET", "POST", "HEAD", "PUT"]))
@settings(deadline=None, max_examples=200)
def test_no_path_is_redirected(client: TestClient, rest: str, method: str) -> None:
    for path in (f"/{rest}", f"/{rest}/", f"/v1/{rest}/", f"{PREFIX}/{rest}"):
        response = client.request(method, f"http://testserver{path}")
        assert not 300 <= response.status_code < 400, path


def test_only_whole_segments_are_a_prefix(client: TestClient) -> None:
    assert client.get(PREFIX).status_code == client.get("/").status_code == 200
    assert client.get(f"{PREFIX}/v1/models").status_code == 200
    # The path at which clients of Hugging Face's servers call the model `ners/v1/models`.
    assert client.get(f"{PREFIX}s/v1/models").status_code == 405
    assert client.get("/v1/models//").status_code == 404


@pytest.mark.parametrize("path", ["/openapi.json", "/docs.json"])
def test_the_document_has_the_prefix(path: str, client: TestClient, served: Served) -> None:
    plain = served.client.get(path).json()
    assert "servers" not in plain
    for variant in (path, f"{PREFIX}{path}", f"{path}/"):
        assert client.get(variant).json() == {"servers": [{"url": PREFIX}], **plain}
    behind = served.client.get(path, headers={"x-forwarded-prefix": "/team, /ner/"})
    assert behind.json()["servers"] == [{"url": "/team/ner"}]
    assert "X-Forwarded-Prefix" in behind.headers["vary"]


@pytest.mark.parametrize(
    ("path", "headers", "start"),
    [
        ("/docs", {}, ""),
        ("/docs/", {}, "../"),
        ("/docs", {"x-forwarded-prefix": "/team/ner"}, "/team/ner/"),
        ("/docs/", {"x-forwarded-prefix": "/team/ner"}, "/team/ner/"),
    ],
)
def test_the_links_of_the_page(path: str, headers: dict[str, str], start: str, served: Served) -> None:
    client = TestClient(PathPrefix(served.client.app, ""), follow_redirects=False)
    page = client.get(path, headers=headers)
    links = re.findall(r'(?:href|src)="([^"]*)"|url: "([^"]*)"', page.text)
    assert {"".join(link) for link in links} == {
        f"{start}{name}"
        for name in (
            "static_content/swagger-ui.css", "static_content/favicon-light-32x32.png",
            "static_content/swagger-ui-bundle.js", "openapi.json",
        )
    }  # fmt: skip


@pytest.mark.parametrize(
    "header",
    ["//evil.example", "/a//b", "https://evil.example", '/a"><script>', "/../a", "a", "/" + "a" * 300, "/a\\b", "/%2e"],
)
def test_a_prefix_that_is_none_is_ignored(header: str, served: Served) -> None:
    headers = {"x-forwarded-prefix": header}
    assert "servers" not in served.client.get("/openapi.json", headers=headers).json()
    assert served.client.get("/docs", headers=headers).text == served.client.get("/docs").text


def test_the_header_changes_no_path(served: Served) -> None:
    """Else a client could pass a proxy that refuses /v2/repository, under another name."""
    client = TestClient(PathPrefix(served.client.app, ""))
    assert client.get("/team/v1/models", headers={"x-forwarded-prefix": "/team"}).status_code == 404


@pytest.mark.parametrize(
    "root_path", ["/v1", "v2/models", "/openai", "/docs/x", "/static_content", "/models", "/rerank"]
)
def test_a_prefix_of_the_server_s_own_paths_is_refused(root_path: str) -> None:
    arguments = Arguments(root_path=root_path)
    with pytest.raises(
        ArgumentsError, match=f"root_path is {arguments.root_path}, but this server has paths of its own"
    ):
        check_root_path(arguments.root_path, "/openai")


def test_prefixes_of_all_paths_are_refused(paths: list[str]) -> None:
    segments = {path.split("/")[1] for path in paths} - {""}
    for segment in segments - {"models"}:
        with pytest.raises(ArgumentsError, match="paths of its own"):
            check_root_path(f"/{segment}/ner", "/openai")
    for segment in segments - {"openai"}:
        with pytest.raises(ArgumentsError, match="other paths"):
            normalize_prefix(f"/{segment}/ner")


@pytest.mark.parametrize(
    ("written", "root_path"), [("models/ner/", "/models/ner"), ("/a", "/a"), ("/a.b/c~d", "/a.b/c~d")]
)
def test_the_form_of_the_argument(written: str, root_path: str) -> None:
    assert Arguments(root_path=written).root_path == root_path


@pytest.mark.parametrize("written", ["/", "//a//b", "http://a", "/a b", "/../a", "/a?b"])
def test_wrong_arguments(written: str) -> None:
    with pytest.raises(ValueError, match="it must be a path such as /models/ner"):
        Arguments(root_path=written)


async def test_other_scopes_pass() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope)

    scope = {"type": "lifespan"}
    await PathPrefix(app, PREFIX)(scope, None, None)  # type: ignore[arg-type]
    assert seen == [scope]
    assert find_prefix({"headers": []}) == ""
