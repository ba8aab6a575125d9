"""OpenAI's API: vLLM's own application where vLLM runs the model, this server's answers where it does not.

This server itself answers completions and chats of a model that generates, embeddings of one that embeds, and the
ranking of texts by one that ranks or embeds; `endpoints.py` has the table.

The API is served twice, below KServe's prefix (`/openai/v1/...`) and below `/v1/...`. `/v1/models` is also a path of
KServe's V1: its answer has OpenAI's `object` and `data` beside V1's `models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.body import Body, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import MethodNotAllowedError, NotFoundError, render_openai_error
from protocol.http.middleware.authentication import Access
from protocol.http.routing import Endpoint, any_route, get_route, log_failure, post_route, with_errors
from protocol.model_cards import model_card
from protocol.openai.bounds import check_forwarded
from protocol.openai.endpoints import AT_ROOT, ENDPOINTS, changes_models, is_for_clients, is_served
from protocol.service_paths import describe_service
from runners.core.errors import InputError, ModelNotFoundError, OverloadedError
from runners.core.models import Models, check_ready
from runners.core.request_limits import RequestLimits
from runners.core.runner import TextGenerator


def routes(models: Models, limits: RequestLimits, access: Access, prefix: str) -> list[Route]:
    """The routes below `prefix` and below `/v1`."""
    prefix = normalize_prefix(prefix)
    api = _Api(models, limits, access, prefix)
    answer = with_openai_errors(api.answer)
    paths = dict.fromkeys([*(f"{prefix}{path}" for path in AT_ROOT if path.startswith("/v1/")), *AT_ROOT])
    found = [
        Route("/v1/models", api.list_models),
        *(post_route(path, answer, _render_logged) for path in paths),
    ]
    if prefix:
        found += [
            get_route(f"{prefix}/v1/models", api.list_models, _render_logged),
            get_route(f"{prefix}/v1/models/{{name:path}}", with_openai_errors(api.retrieve_model), _render_logged),
            any_route(f"{prefix}/{{path:path}}", with_openai_errors(api.answer_below_prefix)),
        ]
    return found


class _Api:
    """The endpoints of the routes."""

    def __init__(self, models: Models, limits: RequestLimits, access: Access, prefix: str) -> None:
        self._models = models
        self._limits = limits
        self._access = access
        self._prefix = prefix

    async def list_models(self, _: Request) -> Response:
        cards = await _model_cards(self._models)
        return json_response({"object": "list", "data": cards, "models": self._models.names})

    async def retrieve_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for card in await _model_cards(self._models):
            if card["id"] == name:
                return json_response(card)
        raise ModelNotFoundError(name)

    async def answer(self, request: Request) -> Response:
        """Answer one of the table's paths, or hand it to vLLM."""
        models, limits, runner = self._models, self._limits, self._models.first
        path = request.url.path.removeprefix(self._prefix)
        check_ready(runner)
        if not is_served(runner, path):
            raise InputError(f"{runner.name} does not serve {request.url.path}: {describe_service(runner)}")
        body = await read_body(request, limits) if request.method == "POST" else Body(b"")
        generator = runner.generator
        if generator is not None and (application := generator.openai_application) is not None:
            characters = await body.check(lambda data: check_forwarded(data, limits)) if body.size else 0
            return _Forwarded(application, path, body.data, generator, characters)
        answer = ENDPOINTS[path].answer
        assert answer is not None, "without vLLM only what has an answer is served"
        return await until_disconnect(request, answer(models, runner, body, limits))

    async def answer_below_prefix(self, request: Request) -> Response:
        """Answer vLLM's further paths, if the model's vLLM has them."""
        path, runner = request.url.path.removeprefix(self._prefix), self._models.first
        if changes_models(path):
            self._access.check_change_over_http(request)
        if (changes_models(path) or is_for_clients(path)) and is_served(runner, path):
            if request.method != "POST" and runner.generator is None:
                raise MethodNotAllowedError(
                    f"{request.method} is not allowed on {request.url.path}; allowed: POST", allowed="POST"
                )
            return await self.answer(request)
        raise NotFoundError(f"there is nothing at {request.url.path}; OpenAI's API is at {self._prefix}/v1")


def normalize_prefix(prefix: str) -> str:
    """The prefix with a slash before it and none after it; empty for no prefix."""
    return f"/{prefix.strip('/')}".rstrip("/")


async def _model_cards(models: Models) -> Sequence[dict[str, Any]]:
    runner = models.first
    if runner.generator is not None and runner.ready and (cards := await runner.generator.model_cards()):
        return cards
    return [model_card(runner, name) for name in models.names]


def with_openai_errors(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors have the form of OpenAI's API."""
    return with_errors(endpoint, render_openai_error)


def _render_logged(error: Exception) -> Response:
    log_failure(error)
    return render_openai_error(error)


class _Forwarded(Response):
    """The answer of another ASGI application in this process, to a request whose body has been read."""

    def __init__(self, application: ASGIApp, path: str, body: bytes, runner: TextGenerator, characters: int) -> None:
        self._application = application
        self._characters = characters
        self._path = path
        self._body = body
        self._runner = runner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes | None = self._body

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        headers = [header for header in scope["headers"] if header[0] not in _BODY_HEADERS]
        inner = _inner_scope(scope, self._path) | {
            "headers": [*headers, (b"content-type", b"application/json")],
            # FastAPI's routes for GET refuse HEAD; this server leaves out the body.
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        }
        try:
            with self._runner.admit(self._characters):
                await self._application(inner, replay, send)
        except OverloadedError as error:
            await _render_logged(error)(scope, receive, send)


class ForwardPreflights:
    """Hands a browser's preflight to vLLM's application if vLLM answers the request that follows.

    vLLM's CORS middleware knows `--allowed-origins`, `--allowed-methods` and `--allowed-headers`.
    """

    def __init__(self, app: ASGIApp, models: Models, prefix: str) -> None:
        self._app = app
        self._models = models
        self._prefix = normalize_prefix(prefix)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and _is_preflight(scope):
            path = scope["path"].removeprefix(self._prefix)
            forwarded = path in AT_ROOT if path == scope["path"] else is_for_clients(path)
            generator = self._models.first.generator
            if forwarded and generator is not None and generator.ready and generator.serves_openai(path):
                application = generator.openai_application
                if application is not None:
                    await application(_inner_scope(scope, path), receive, send)
                    return
        await self._app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    """Whether an OPTIONS request is a preflight: https://fetch.spec.whatwg.org/#cors-preflight-request"""
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in scope["headers"]}


def _inner_scope(scope: Scope, path: str) -> dict[str, Any]:
    """The scope as a server makes it: the keys that the outer router adds would mislead the inner one."""
    server_scope = {key: scope[key] for key in _SERVER_KEYS if key in scope}
    return server_scope | {"path": path, "raw_path": path.encode(), "root_path": ""}


_SERVER_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server", "extensions",
)  # fmt: skip
# These headers describe the body as it was sent, before it was decoded.
_BODY_HEADERS = frozenset({b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"})
