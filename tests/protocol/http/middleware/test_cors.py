"""CORS on every route of every protocol, as browsers see it; Starlette's own middleware says what is expected."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.http.direct import route_directly
from protocol.http.middleware.cors import Cors, CorsSettings, make_cors
from runners.core.argument_sources import read_arguments
from runners.core.arguments import Arguments
from runners.core.errors import ArgumentsError
from runners.core.request_record import RequestRecord, add_observer, remove_observer
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.served import models_of

HERE, THERE = "https://chat.example.com", "https://other.example.com"
EXPOSED = "Inference-Header-Content-Length, Metadata, Retry-After, X-Request-Id"
ASKS = {"access-control-request-method": "POST", "access-control-request-headers": "authorization, content-type"}
BODY = {"instances": ["a text"]}


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, serve: Serve) -> TestClient:
    return serve(
        model_dir=model_folder("bert", "text_embedding"), allowed_origins=HERE, api_key="secret", max_request_bytes=9999
    ).client


def read_cors(response: Any) -> dict[str, str]:
    """The headers for browsers, and the names on which the answer depends."""
    found = {name: value for name, value in response.headers.items() if name.startswith("access-control-")}
    vary = {name.strip() for name in response.headers.get("vary", "").split(",")}
    return found | ({"vary": "Origin"} if "Origin" in vary else {})


ROUTES = [
    ("POST", "/v1/models/model:predict", 200), ("POST", "/v2/models/model/infer", 400), ("POST", "/v1/embeddings", 400),
    ("POST", "/openai/v1/embeddings", 400), ("POST", "/embed", 422), ("POST", "/rerank", 422), ("GET", "/v1/models", 200),
    ("GET", "/openai/v1/models", 200), ("GET", "/v2/models/model", 200), ("GET", "/", 200), ("GET", "/health", 200),
    ("GET", "/metrics", 200), ("GET", "/openapi.json", 200), ("GET", "/docs", 200), ("GET", "/nothing", 404),
    ("GET", "/v1/models/no", 404), ("PUT", "/v1/embeddings", 405), ("OPTIONS", "/v1/embeddings", 204),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_every_route(method: str, path: str, status: int, served: TestClient) -> None:
    headers = {"origin": HERE, "authorization": "Bearer secret", "x-request-id": "7"}
    response = served.request(method, path, json=BODY if method == "POST" else None, headers=headers)
    assert response.status_code == status
    assert read_cors(response) == {
        "access-control-allow-origin": HERE, "access-control-expose-headers": EXPOSED, "vary": "Origin",
    }  # fmt: skip
    others = served.request(method, path, json=BODY if method == "POST" else None, headers=headers | {"origin": THERE})
    assert (others.status_code, read_cors(others)) == (status, {"vary": "Origin"})


def test_a_request_without_an_origin(served: TestClient) -> None:
    """It gets what it got before; but a cache must tell answers with the header from those without it."""
    key = {"authorization": "Bearer secret"}
    assert read_cors(served.post("/v1/models/model:predict", json=BODY, headers=key)) == {}
    assert read_cors(served.get("/v1/models", headers=key)) == {"vary": "Origin"}


def test_errors_before_a_route_is_found(served: TestClient) -> None:
    refused = served.post("/v1/models/model:predict", json=BODY, headers={"origin": HERE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, HERE)
    headers = {"origin": HERE, "authorization": "Bearer secret"}
    large = served.post("/v1/models/model:predict", content="x" * 10_000, headers=headers)
    assert (large.status_code, large.headers["access-control-allow-origin"]) == (413, HERE)


@pytest.mark.parametrize("path", ["/v1/models/model:predict", "/v1/embeddings", "/embed", "/v1/models", "/nothing"])
def test_preflights(path: str, served: TestClient) -> None:
    """They have no key, and no preflight is asked for the path that follows."""
    allowed = served.options(path, headers={"origin": HERE, **ASKS})
    assert allowed.status_code == 200
    assert allowed.headers["access-control-allow-origin"] == HERE
    assert allowed.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-max-age"] == "600"
    refused = served.options(path, headers={"origin": THERE, **ASKS})
    assert (refused.status_code, "access-control-allow-origin" in refused.headers) == (400, False)


def test_an_option_request_that_is_no_preflight(served: TestClient) -> None:
    assert served.options("/v1/embeddings").headers["allow"] == "OPTIONS, POST"
    assert served.options("/v1/embeddings", headers={"origin": HERE}).headers["allow"] == "OPTIONS, POST"


def test_without_the_argument_no_page_may_read(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "text_embedding")).client
    assert read_cors(client.get("/v1/models", headers={"origin": HERE})) == {}
    preflight = client.options("/v1/embeddings", headers={"origin": HERE, **ASKS})
    assert (preflight.status_code, read_cors(preflight)) == (204, {})


def test_a_stream(generator_folder: GeneratorFolder, serve: Serve) -> None:
    client = serve(model_dir=generator_folder("llama"), backend="huggingface", allowed_origins="*").client
    body = {"prompt": "a", "max_tokens": 2, "stream": True}
    answer = client.post("/v1/completions", json=body, headers={"origin": HERE})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert read_cors(answer) == {"access-control-allow-origin": "*", "access-control-expose-headers": EXPOSED}


def test_records_of_preflights(served: TestClient) -> None:
    records: list[RequestRecord] = []
    add_observer(records.append)
    for origin in (HERE, THERE):
        served.options("/embed", headers={"origin": origin, **ASKS})
    remove_observer(records.append)
    assert [(record.method, record.status, record.refusal) for record in records] == [
        ("OPTIONS", "200", None), ("OPTIONS", "400", "input"),
    ]  # fmt: skip


SETTINGS = [
    CorsSettings(["*"]),
    CorsSettings([HERE]),
    CorsSettings([HERE, "null"], methods=["GET"], headers=["X-Mine"]),
    CorsSettings([HERE], credentials=True, max_age=5),
    CorsSettings(["*"], credentials=True, exposed=()),
    CorsSettings(origin_pattern=r"https://[a-z]+\.example\.com", exposed=["X-Mine"]),
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("origin", [HERE, THERE, "null", "https://evil.example.com.org", ""])
def test_the_answers_are_those_of_starlette(settings: CorsSettings, origin: str) -> None:
    async def answer(request: Request) -> Response:
        # As BentoML's or vLLM's application may answer, if it has a middleware of its own.
        return PlainTextResponse("x", headers={"access-control-allow-origin": "inner", "vary": "Accept-Encoding"})

    async def plain(request: Request) -> Response:
        return PlainTextResponse("x", headers={"vary": "Accept-Encoding"})

    reference = TestClient(
        CORSMiddleware(
            Starlette(routes=[Route("/schema.json", plain)]), settings.origins, settings.methods, settings.headers,
            settings.credentials, settings.origin_pattern, expose_headers=settings.exposed, max_age=settings.max_age,
        )
    )  # fmt: skip
    inner = Starlette(routes=[Route("/schema.json", answer)])
    client = TestClient(route_directly(inner, inner, models_of(), cors=Cors(settings)))
    wanted, found = (each.get("/schema.json", headers={"origin": origin}) for each in (reference, client))
    if "access-control-allow-origin" in wanted.headers:
        # Starlette adds `Origin` also where the answer does not depend on it.
        assert read_cors(found) | {"vary": ""} == read_cors(wanted) | {"vary": ""}
    else:
        assert read_cors(found) == {"vary": "Origin"}
    assert "Accept-Encoding" in found.headers["vary"]
    for method, header in (("POST", "x-mine"), ("GET", "x-mine"), ("GET", "x-other"), ("DELETE", "")):
        asks = {"origin": origin, "access-control-request-method": method, "access-control-request-headers": header}
        wanted, found = (each.options("/schema.json", headers=asks) for each in (reference, client))
        assert (found.status_code, found.text, found.headers) == (wanted.status_code, wanted.text, wanted.headers)


@pytest.mark.parametrize(
    ("written", "origins"),
    [
        ('["https://a.example", "http://localhost:8080"]', ("https://a.example", "http://localhost:8080")),
        ("https://a.example, http://[::1]:80", ("https://a.example", "http://[::1]:80")),
        ("*", ("*",)), ('["*"]', ("*",)), ("[]", ()), (["HTTPS://A.example"], ("https://a.example",)),
        ("null,app://obsidian.md,chrome-extension://abc", ("null", "app://obsidian.md", "chrome-extension://abc")),
    ],
)  # fmt: skip
def test_the_argument(written: Any, origins: tuple[str, ...]) -> None:
    arguments = read_arguments({"allowed_origins": written}, {}, {})
    assert arguments.allowed_origins == origins
    assert not arguments.engine
    assert (make_cors(arguments) is None) is (origins == ())


def test_the_other_arguments() -> None:
    environment = {"RUNTIME_ALLOWED_METHODS": '["GET", "POST"]', "RUNTIME_ALLOWED_HEADERS": "Authorization,X-Mine"}
    arguments = read_arguments({"allowed_origins": HERE, "allow_credentials": "true"}, environment, {})
    assert arguments.allowed_methods == ("GET", "POST")
    assert arguments.allowed_headers == ("Authorization", "X-Mine")
    assert arguments.allow_credentials
    assert (Arguments().allowed_methods, Arguments().allowed_headers) == (("*",), ("*",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"allowed_origins": "chat.example.com"}, "an origin is a scheme, a host and perhaps a port"),
        ({"allowed_origins": "https://a.example/"}, "an origin is a scheme, a host and perhaps a port"),
        ({"allowed_origins": "https://*.a.example"}, "an origin is a scheme, a host and perhaps a port"),
        ({"allowed_origins": '["https://a.example"'}, "it must be a list in JSON, or items separated by commas"),
        ({"allowed_methods": "GET POST"}, "'GET POST' is no name of a method or a header"),
        ({"allowed_headers": json.dumps(["a\r\nb"])}, "is no name of a method or a header"),
        ({"allowed_origins": "*", "allow_credentials": True}, "allow_credentials with allowed_origins"),
    ],
)  # fmt: skip
def test_wrong_arguments(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentsError, match=message):
        read_arguments(values, {}, {})
