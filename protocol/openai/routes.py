"""OpenAI's API: vLLM's own application where vLLM runs the model, this server's answers where it does not.

This server itself answers completions and chats of a model that generates, embeddings of one that embeds, and the
ranking of texts by one that ranks or embeds; `call_table.py` has the table.

The API is served twice, below KServe's prefix (`/openai/v1/...`) and below `/v1/...`. `/v1/models` is also a path of
KServe's V1: its answer has OpenAI's `object` and `data` beside V1's `models`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import Body, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import MethodNotAllowedError, NotFoundError
from protocol.http.routing import Endpoint, any_route, get_route, post_route, with_errors
from protocol.model_cards import model_card
from protocol.openai.call_table import CALLS
from protocol.openai.errors import render_openai_error
from protocol.openai.forwarded_limits import check_forwarded
from protocol.openai.forwarding import Forwarded
from protocol.openai_paths import (
    AT_ROOT,
    OPENAI_PATHS,
    changes_models,
    find_openai_application,
    is_for_clients,
    is_served,
)
from protocol.service_paths import describe_service
from runners.core.errors import InputError, ModelNotFoundError
from runners.core.models import Models, check_ready


def routes(context: ServerContext) -> list[Route]:
    """The routes below the prefix and below `/v1`."""
    prefix, api = context.openai_prefix, _Api(context)
    answer = with_openai_errors(api.answer)
    paths = dict.fromkeys([*(f"{prefix}{path}" for path in AT_ROOT if path.startswith("/v1/")), *AT_ROOT])
    found = [Route("/v1/models", api.list_models), *(post_route(path, answer, render_openai_error) for path in paths)]
    if prefix:
        found += [
            get_route(f"{prefix}/v1/models", api.list_models, render_openai_error),
            get_route(f"{prefix}/v1/models/{{name:path}}", with_openai_errors(api.retrieve_model), render_openai_error),
            any_route(f"{prefix}/{{path:path}}", with_openai_errors(api.answer_below_prefix)),
        ]
    return found


class _Api:
    """The endpoints of the routes."""

    def __init__(self, context: ServerContext) -> None:
        self._models = context.models
        self._limits = context.arguments
        self._access = context.access
        self._prefix = context.openai_prefix

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
        if (application := find_openai_application(runner)) is not None:
            characters = await body.check(lambda data: check_forwarded(data, limits)) if body.size else 0
            return Forwarded(application, path, body.data, characters)
        call = CALLS[OPENAI_PATHS[path].call]
        return await until_disconnect(request, call.answer(models, runner, body, limits))

    async def answer_below_prefix(self, request: Request) -> Response:
        """Answer vLLM's further paths, if the model's vLLM has them."""
        path, runner = request.url.path.removeprefix(self._prefix), self._models.first
        if changes_models(path):
            self._access.check_change_over_http(request)
        if (changes_models(path) or is_for_clients(path)) and is_served(runner, path):
            if request.method != "POST" and find_openai_application(runner) is None:
                raise MethodNotAllowedError(
                    f"{request.method} is not allowed on {request.url.path}; allowed: POST", allowed="POST"
                )
            return await self.answer(request)
        raise NotFoundError(f"there is nothing at {request.url.path}; OpenAI's API is at {self._prefix}/v1")


async def _model_cards(models: Models) -> Sequence[dict[str, Any]]:
    runner = models.first
    if runner.ready and (application := find_openai_application(runner)) is not None:
        return await application.model_cards()
    return [model_card(runner, name) for name in models.names]


def with_openai_errors(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors have the form of OpenAI's API."""
    return with_errors(endpoint, render_openai_error)
