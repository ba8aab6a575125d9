"""OpenAI's API: vLLM's own layer where vLLM runs the model, this server's own where it does not.

Its own are completions and chats of a model that generates, embeddings of one that embeds, and the ranking of texts by
one that ranks or embeds.

It is served twice, under KServe's prefix (`/openai/v1/...`) and under `/v1/...`. `/v1/models` is also KServe's V1: its
answer has OpenAI's `object` and `data` beside V1's `models`, and so both kinds of client find what they read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.body import Body, json_response, read_body
from protocol.http.calls import (
    OPENAI_PATHS,
    RANKING_PATHS,
    TOKENIZER_PATHS,
    any_route,
    check_ready,
    describe_service,
    get_route,
    post_route,
    serves_openai,
    until_disconnect,
)
from protocol.http.errors import (
    InvalidRequestError,
    MethodNotAllowedError,
    ModelNotFoundError,
    NotFoundError,
    ProtocolError,
    describe,
    render_openai_error,
)
from protocol.http.middleware.authentication import Access
from protocol.openai.bounds import check_forwarded
from protocol.openai.chats import answer_chat
from protocol.openai.completions import answer_completion
from protocol.openai.embeddings import answer_embeddings
from protocol.openai.ranking import answer_rerank, answer_score
from protocol.openai.responses import answer_response
from protocol.openai.tokenize import answer_detokenize, answer_tokenize
from protocol.versions import SERVER_NAME
from runners.core.errors import GenerationFailedError, ModelNotReadyError, OverloadedError, without_message
from runners.core.models import Models
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner, TextGenerator

logger = logging.getLogger(__name__)

# Beside /v1, below the prefix only: what vLLM offers to everybody. Its other routes are an operator's.
_VLLM_PATHS = frozenset({*TOKENIZER_PATHS, *RANKING_PATHS, "/classify", "/pooling"})
# The first names below /v1 of what vLLM offers to everybody; what another release adds may be an operator's.
_VLLM_RESOURCES = frozenset(
    {
        "audio", "chat", "classify", "completions", "embeddings", "messages", "models", "pooling", "rerank",
        "responses", "score",
    }
)  # fmt: skip
# Below the prefix too, for whoever may change what is loaded; vLLM has them with VLLM_ALLOW_RUNTIME_LORA_UPDATING.
ADMIN_PATHS = frozenset({"/v1/load_lora_adapter", "/v1/unload_lora_adapter"})
# Cohere's client has the version in its own paths.
COHERE_PATH = "/v2/rerank"
_STARTED = int(time.time())


def routes(models: Models, limits: RequestLimits, access: Access, prefix: str) -> list[Route]:
    """The routes under `prefix` and under `/v1`."""
    prefix = normalize_prefix(prefix)

    async def list_models(_: Request) -> Response:
        return json_response({"object": "list", "data": await _model_cards(models), "models": models.names})

    async def retrieve_model(request: Request) -> Response:
        name = request.path_params["name"]
        for card in await _model_cards(models):
            if card["id"] == name:
                return json_response(card)
        raise ModelNotFoundError(name)

    async def forward_or_answer(request: Request) -> Response:
        runner = models.first
        path = request.url.path.removeprefix(prefix)
        check_ready(runner)
        if not serves_openai(runner, path):
            raise InvalidRequestError(f"{runner.name} does not serve {request.url.path}: {describe_service(runner)}")
        body = await read_body(request, limits) if request.method == "POST" else Body(b"")
        if (generator := runner.generator) is None:
            return await _ENCODER_ANSWERS[path](request, models, runner, body, limits)
        if generator.openai_application is not None:
            characters = await body.check(lambda data: check_forwarded(data, limits)) if body.size else 0
            return _Forwarded(generator, path, body.data, characters)
        return await until_disconnect(request, _ANSWERS[path](models, generator, body, limits))

    async def unknown(request: Request) -> Response:
        path, runner = request.url.path.removeprefix(prefix), models.first
        if path in ADMIN_PATHS:
            access.check_change_over_http(request)
        if (path in ADMIN_PATHS or is_for_clients(path)) and serves_openai(runner, path):
            if request.method != "POST" and runner.generator is None:
                raise MethodNotAllowedError(
                    f"{request.method} is not allowed on {request.url.path}; allowed: POST", allowed="POST"
                )
            return await forward_or_answer(request)
        raise NotFoundError(f"there is nothing at {request.url.path}; OpenAI's API is at {prefix}/v1")

    bases = dict.fromkeys((f"{prefix}/v1", "/v1"))
    found = [
        Route("/v1/models", list_models),
        *(post_route(f"{base}/{path}", shaped(forward_or_answer), _shape) for base in bases for path in OPENAI_PATHS),
        *(post_route(path, shaped(forward_or_answer), _shape) for path in (COHERE_PATH, *TOKENIZER_PATHS)),
    ]
    if prefix:
        found.append(get_route(f"{prefix}/v1/models", list_models, _shape))
        found.append(get_route(f"{prefix}/v1/models/{{name:path}}", shaped(retrieve_model), _shape))
        found.append(any_route(f"{prefix}/{{path:path}}", shaped(unknown)))
    return found


def normalize_prefix(prefix: str) -> str:
    """The prefix with one slash before it and none behind it; empty for none."""
    return f"/{prefix.strip('/')}".rstrip("/")


def is_for_clients(path: str) -> bool:
    """Whether a path of vLLM's is for everybody below the prefix, if it is there."""
    return path in _VLLM_PATHS or (path.startswith("/v1/") and path.split("/")[2] in _VLLM_RESOURCES)


_ANSWERS = {
    "/v1/completions": answer_completion,
    "/v1/chat/completions": answer_chat,
    "/v1/responses": answer_response,
    "/tokenize": answer_tokenize,
    "/detokenize": answer_detokenize,
}
_ENCODER_ANSWERS = {
    "/v1/embeddings": answer_embeddings,
    **dict.fromkeys(("/v1/rerank", "/rerank", COHERE_PATH), answer_rerank),
    **dict.fromkeys(("/v1/score", "/score"), answer_score),
}


def model_card(runner: Runner, name: str) -> dict[str, Any]:
    """A model under one of its names, as OpenAI's API describes it, with what vLLM says beside that.

    The most tokens of a sequence are known once the model is loaded.
    """
    length = runner.properties.get("max_length") if runner.ready else None
    return {
        "id": name, "object": "model", "created": _STARTED, "owned_by": SERVER_NAME, "root": runner.name,
        "parent": None, "max_model_len": None if length is None else int(length),
    }  # fmt: skip


async def _model_cards(models: Models) -> list[dict[str, Any]]:
    runner = models.first
    if runner.generator is not None and runner.ready and (cards := await runner.generator.model_cards()):
        return cards
    return [model_card(runner, name) for name in models.names]


Endpoint = Callable[[Request], Awaitable[Response]]


def shaped(endpoint: Endpoint, render: Callable[[Exception], Response] = render_openai_error) -> Endpoint:
    """The endpoint, with its errors in a form of their own."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            raise
        except Exception as error:
            return _shape(error, render)

    return answer


def _shape(error: Exception, render: Callable[[Exception], Response] = render_openai_error) -> Response:
    if describe(error)[0] >= 500 and not isinstance(error, (ProtocolError, ModelNotReadyError, GenerationFailedError)):
        logger.error("a request failed: %s", type(error).__name__, exc_info=without_message(error))
    return render(error)


class _Forwarded(Response):
    """The answer of vLLM's OpenAI layer to a request whose body has been read."""

    def __init__(self, runner: TextGenerator, path: str, body: bytes, characters: int) -> None:
        """
        Args:
            characters: number of characters of the request's texts.
        """
        self._runner = runner
        self._path = path
        self._body = body
        self._characters = characters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body: bytes | None = self._body

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            message: Message = {"type": "http.request", "body": body, "more_body": False}
            body = None
            return message

        headers = [header for header in scope["headers"] if header[0] not in _OF_THE_BODY]
        inner = _inner_scope(scope, self._path) | {
            "headers": [*headers, (b"content-type", b"application/json")],
            # FastAPI's routes for GET do not take HEAD; the server leaves out the body.
            "method": "GET" if scope["method"] == "HEAD" else scope["method"],
        }
        try:
            await self._runner.forward(self._characters, inner, replay, send)
        except OverloadedError as error:
            await _shape(error)(scope, receive, send)


class ForwardPreflights:
    """Hands a browser's preflight to vLLM's application where that answers the request which will follow.

    Its CORS middleware knows vLLM's `--allowed-origins`, `--allowed-methods` and `--allowed-headers`.
    """

    def __init__(self, app: ASGIApp, models: Models, prefix: str) -> None:
        self._app = app
        self._models = models
        self._prefix = normalize_prefix(prefix)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and _is_preflight(scope):
            path = scope["path"].removeprefix(self._prefix)
            at_root = path in (COHERE_PATH, *TOKENIZER_PATHS) or path.removeprefix("/v1/") in OPENAI_PATHS
            forwarded = is_for_clients(path) if path != scope["path"] else at_root
            generator = self._models.first.generator
            if forwarded and generator is not None and generator.ready and generator.serves_openai(path):
                application = generator.openai_application
                if application is not None:
                    await application(_inner_scope(scope, path), receive, send)
                    return
        await self._app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    """As the Fetch standard has it: https://fetch.spec.whatwg.org/#cors-preflight-request"""
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in scope["headers"]}


def _inner_scope(scope: Scope, path: str) -> dict[str, Any]:
    """Only what a server gives an application: the outer router's own keys would mislead the inner one."""
    own = {key: scope[key] for key in _SERVER_KEYS if key in scope}
    return own | {"path": path, "raw_path": path.encode(), "root_path": ""}


_SERVER_KEYS = (
    "type", "asgi", "http_version", "method", "scheme", "query_string", "headers", "client", "server", "extensions",
)  # fmt: skip
# What no longer describes a body that is read and decoded.
_OF_THE_BODY = frozenset({b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"})
