"""What is open, what asks for a key, and who may load and unload, over every protocol."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
import pytest
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from protocol.application import create_application, create_routes
from protocol.context import make_context
from protocol.http.open_paths import BENTOML_PATHS, OPEN_PATHS, is_open
from protocol.open_inference.grpc.methods import CHANGING_CALLS, OPEN_CALLS
from protocol.open_inference.grpc.stubs import open_inference_pb2
from runners.core import file_watch
from runners.core.admission import Admission
from runners.core.api_keys import digest_keys
from runners.core.arguments import Arguments
from runners.generator.runner import GeneratorRunner
from runners.generator.vllm.openai_application import VllmOpenAIApplication
from tests.conftest import Dial, ModelFolder, Serve
from tests.served import Served, models_of

LOAD = "/v2/repository/models/model/load"
CLIENT, ADMIN = {"authorization": "Bearer client"}, {"authorization": "Bearer admin"}
UNAUTHORIZED = {"error": "this server asks for a key: send it as Authorization: Bearer KEY"}


@pytest.fixture(scope="module")
def folder(model_folder: ModelFolder) -> Path:
    return model_folder("bert", "sequence_classification")


@pytest.fixture(scope="module")
def start(folder: Path, serve: Serve) -> Serve:
    """A server with keys: `start(api_key="client")`."""
    return lambda **arguments: serve(model_dir=folder, **arguments)


@pytest.fixture(scope="module")
def served(start: Serve) -> Served:
    return start(api_key="client")


@pytest.fixture(scope="module")
def keyed(served: Served) -> TestClient:
    return served.client


# What is open


def test_every_route_that_is_not_listed_asks_for_a_key(served: Served) -> None:
    routes = create_routes(make_context(served.models, served.arguments))
    asked = 0
    for route in chain.from_iterable(routes.values()):
        path = re.sub(r"{(\w+)(:path)?}", "model", route.path)
        for method in route.methods or ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH"):
            answer = served.client.request(method, path)
            assert (answer.status_code == 401) is not is_open(method, path), (method, path)
            asked += answer.status_code == 401
    assert asked > 100


@pytest.mark.parametrize("path", sorted(OPEN_PATHS - BENTOML_PATHS))
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_what_is_open(keyed: TestClient, method: str, path: str) -> None:
    assert keyed.request(method, path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/v1/models/", "/v1//models", "/V1/models", "/v1/models%20", "/%76%31/models", "/v1%2Fmodels", "/./v1/models",
        "/docs/../v1/models", "/docs/%2e%2e/v1/models", "/docs;/../v1/models", "/metrics/../v1/models", "/v2/", "/v2//health/live",
        "/v2/health/live/", "/v2/health/live/../../models", "/V2/HEALTH/LIVE", "/v2/health/ready%00", "/docs%3F/v1/models", "/docs;x",
        "/static_content/../v1/models", "/livez/../v1/models", "/openapi.json/v1/models", "/metrics%2Fv1", "*", "", "v2",
    ],
)  # fmt: skip
def test_other_spellings_open_nothing(keyed: TestClient, path: str) -> None:
    """As uvicorn hands them over: decoded, and else as they were sent."""
    application = keyed.app

    async def respell(scope: Any, receive: Any, send: Any) -> None:
        await application({**scope, "path": unquote(path), "raw_path": path.encode()}, receive, send)

    assert TestClient(respell).get("/", follow_redirects=False).status_code == 401


def test_a_path_in_other_letters_is_the_same_path(keyed: TestClient) -> None:
    """Encoded letters are decoded before the router and the list see the path."""
    assert keyed.get("/v2/health%2Flive").json() == {"live": True}
    assert keyed.get("/%76%31/models").status_code == 401
    assert keyed.get("/%76%31/models", headers=CLIENT).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("authorization", "Bearer client")], 200),
        ([("authorization", "bearer client")], 200),
        ([("Authorization", "BEARER \t client ")], 200),
        ([("authorization", "Bearer other")], 200),
        ([], 401),
        ([("authorization", "")], 401),
        ([("authorization", "Bearer")], 401),
        ([("authorization", "Bearer ")], 401),
        ([("authorization", "client")], 401),
        ([("authorization", "Basic client")], 401),
        ([("authorization", "Bearer Client")], 401),
        ([("authorization", "Bearer client,other")], 401),
        ([("authorization", "Bearer client other")], 401),
        ([("authorization", "Bearer clïent".encode("latin-1"))], 401),
        ([("authorization", "Bearer client\x00")], 401),
        ([("authorization", "Bearer client"), ("authorization", "Bearer wrong")], 401),
        ([("authorization", "Bearer client"), ("authorization", "Bearer client")], 401),
        ([("x-api-key", "client")], 401),
    ],
)
def test_headers(start: Serve, headers: list[tuple[str, Any]], status: int) -> None:
    answer = start(api_key=" client , other,").client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert (answer.json(), answer.headers["www-authenticate"]) == (UNAUTHORIZED, "Bearer")


# Loading and unloading


@pytest.mark.parametrize(
    ("arguments", "none", "client", "admin"),
    [
        ({}, 403, 403, 403),
        ({"enable_repository": True}, 200, 200, 200),
        ({"api_key": "client"}, 401, 200, 401),
        ({"api_key": "client", "enable_repository": True}, 401, 200, 401),
        ({"admin_api_key": "admin"}, 401, 401, 200),
        ({"admin_api_key": "admin", "enable_repository": True}, 401, 401, 200),
        ({"api_key": "client", "admin_api_key": "admin"}, 401, 403, 200),
    ],
)
def test_who_may_load(arguments: dict[str, Any], none: int, client: int, admin: int, start: Serve, dial: Dial) -> None:
    served = start(**arguments)
    server = served.client
    call = dial(served).unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    message = open_inference_pb2.RepositoryModelLoadRequest(model_name="model").SerializeToString()
    codes = {200: "OK", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"}
    for headers, status in (({}, none), (CLIENT, client), (ADMIN, admin)):
        answer = server.post(LOAD, headers=headers)
        assert answer.status_code == status, answer.text
        assert code_of(partial(call, message, metadata=tuple(headers.items()))) == codes[status]
        assert server.post("/v2/repository/any/models/model/load", headers=headers).status_code == status


def test_what_a_refusal_says(start: Serve) -> None:
    off = start().client.post(LOAD)
    assert off.json() == {
        "error": "loading and unloading are off on this server, which has no keys: --admin_api_key or "
        "--enable_repository allows them"
    }
    keys = start(api_key="client", admin_api_key="admin").client
    assert keys.post(LOAD, headers=CLIENT).json() == {
        "error": "loading and unloading need an admin's key, which this one is not"
    }


def test_an_admin_s_key_is_good_for_everything(start: Serve) -> None:
    server = start(api_key="client", admin_api_key="admin").client
    for headers in (CLIENT, ADMIN):
        assert server.post("/v2/repository/index", headers=headers).status_code == 200
        assert server.post("/v1/models/model:predict", json={"instances": ["a"]}, headers=headers).status_code == 200
    assert start(admin_api_key="admin").client.get("/v1/models").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"sec-fetch-site": "same-origin", "origin": "https://proxy.example"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "http://testserver"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site", "origin": "http://other.testserver"}, 403),
        ({"sec-fetch-site": "", "origin": "http://testserver"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://testserver.evil.example"}, 403),
        ({"origin": "http://testserver:81"}, 403),
        ({"origin": "http://["}, 403),
        ({"origin": "null"}, 403),
        ({"origin": ""}, 403),
    ],
)
@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "application/json"])
def test_pages_of_other_origins_change_nothing(
    headers: dict[str, str], status: int, kind: str | None, start: Serve
) -> None:
    server = start(enable_repository=True).client
    sent = headers if kind is None else {**headers, "content-type": kind}
    assert server.post(LOAD, headers=sent).status_code == status
    # What changes nothing is for browsers too.
    assert server.post("/v2/repository/index", headers=sent).status_code == 200


# vLLM's routes


@pytest.mark.parametrize(
    ("path", "none", "client", "admin"),
    [
        ("/openai/v1/completions", 401, 200, 200),
        ("/openai/v1/responses/1/cancel", 401, 200, 200),
        ("/openai/v1/load_lora_adapter", 401, 403, 200),
        ("/openai/v1/unload_lora_adapter", 401, 403, 200),
        ("/v1/load_lora_adapter", 401, 404, 404),
        ("/openai/v1/load_lora_adapter/", 401, 404, 404),
        ("/openai/v1//load_lora_adapter", 401, 404, 404),
        ("/openai/v1/LOAD_lora_adapter", 401, 404, 404),
        ("/openai//v1/load_lora_adapter", 401, 404, 404),
        ("/openai/v1/load_lora_adapter%3F", 401, 404, 404),
        ("/openai/v1/pause", 401, 404, 404),
        ("/openai/pause", 401, 404, 404),
        ("/openai/sleep", 401, 404, 404),
        ("/openai/reset_prefix_cache", 401, 404, 404),
        ("/openai/collective_rpc", 401, 404, 404),
        ("/openai/update_weights", 401, 404, 404),
        ("/openai/server_info", 401, 404, 404),
    ],
)
def test_what_is_an_operator_s_on_vllm(path: str, none: int, client: int, admin: int) -> None:
    async def answer(request: Request) -> Response:
        return JSONResponse({"path": request.url.path})

    inner = FastAPI(routes=[Route("/{path:path}", answer, methods=["POST"])])

    class Runner(GeneratorRunner):
        ready = True
        openai_application = VllmOpenAIApplication(inner, Admission(Arguments()))

    arguments = Arguments(api_key="client", admin_api_key="admin")
    server = TestClient(create_application(models_of(Runner(arguments)), arguments))
    for headers, status in (({}, none), (CLIENT, client), (ADMIN, admin)):
        assert server.post(path, headers=headers, json={}).status_code == status


# gRPC


def test_every_call_that_is_not_listed_asks_for_a_key(served: Served, dial: Dial) -> None:
    """All that the server's own reflection tells of, and what there is not."""
    channel = dial(served)
    methods = {
        f"/{service.full_name}/{method.name}"
        for descriptor in (open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
        for service in descriptor.services_by_name.values()
        for method in service.methods
    }
    assert methods > OPEN_CALLS | CHANGING_CALLS
    for method in (*methods, "/inference.GRPCInferenceService/Nothing", "//grpc.health.v1.Health/Check"):
        code = code_of(partial(next, channel.stream_stream(method)(iter([b""]), timeout=5), None))
        assert (code == "UNAUTHENTICATED") is (method not in OPEN_CALLS), method


def test_a_call_without_a_key_is_refused_before_its_message_is_read(served: Served, dial: Dial) -> None:
    call = dial(served).unary_unary("/inference.GRPCInferenceService/ModelInfer")
    error = error_of(lambda: call(b"\xff" * 100, metadata=(("x-request-id", "7"),)))
    assert (error.code().name, error.details()) == ("UNAUTHENTICATED", UNAUTHORIZED["error"])
    assert ("x-request-id", "7") in error.trailing_metadata()
    error = error_of(lambda: call(b"\xff" * 100, metadata=tuple(CLIENT.items())))
    assert error.code().name == "INVALID_ARGUMENT"
    twice = (*CLIENT.items(), *CLIENT.items())
    assert error_of(lambda: call(b"", metadata=twice)).code().name == "UNAUTHENTICATED"


def error_of(call: Callable[[], Any]) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def code_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


# Files of keys


def test_keys_from_a_file_are_read_again(
    start: Serve, dial: Dial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is a link, as in a secret of Kubernetes, which points elsewhere once the secret has changed."""
    monkeypatch.setattr(file_watch, "_CHECK_SECONDS", 0)
    (tmp_path / "old").write_text("# of team A\nfirst\n\n second \n")
    (tmp_path / "new").write_text("third")
    link = tmp_path / "keys"
    link.symlink_to("old")
    served = start(api_key_file=str(link), api_key="always")
    server = served.client
    call = dial(served).unary_unary("/inference.GRPCInferenceService/RepositoryIndex")

    def accepted() -> list[str]:
        keys = ("first", "second", "third", "always")
        over_http = [key for key in keys if ask(server, key) == 200]
        over_grpc = [key for key in keys if code_of(partial(call, b"", metadata=bearer(key))) == "OK"]
        assert over_http == over_grpc
        return over_http

    assert accepted() == ["first", "second", "always"]
    (tmp_path / "swap").symlink_to("new")
    (tmp_path / "swap").rename(link)
    assert accepted() == ["third", "always"]
    assert ask(server, "") == 401


def bearer(key: str) -> tuple[tuple[str, str]]:
    return (("authorization", f"Bearer {key}"),)


def ask(server: TestClient, key: str) -> int:
    return server.get("/v1/models", headers={"authorization": f"Bearer {key}"}).status_code


def test_a_file_that_is_not_there_lets_nobody_in(start: Serve, tmp_path: Path) -> None:
    server = start(api_key_file=str(tmp_path / "none")).client
    assert ask(server, "") == ask(server, "anything") == 401


def test_keys_are_kept_as_digests(folder: Path) -> None:
    arguments = Arguments(model_dir=str(folder), api_key="s3cret", admin_api_key="adm1n")
    assert arguments.api_key == digest_keys("s3cret")
    for shown in (repr(arguments), str(arguments.model_dump()), str(vars(arguments))):
        assert "s3cret" not in shown
        assert "adm1n" not in shown
