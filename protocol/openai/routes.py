"""OpenAI's API: vLLM's own application where vLLM runs the model, this server's answers where it does not.

This server itself answers completions and chats of a model that generates, embeddings of one that embeds, and the
ranking of texts by one that ranks or embeds; `call_table.py` has the table.

The API is served twice, below KServe's prefix (`/openai/v1/...`) and below `/v1/...`. `/v1/models` is also a path of
KServe's V1: its answer has OpenAI's `object` and `data` beside V1's `models`.
"""

from __future__ import annotations

from dataclasses import replace

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.body import FORM_TYPE, Body, decode_json, is_form, json_response, read_body
from protocol.http.disconnects import until_disconnect
from protocol.http.errors import MethodNotAllowedError, NotFoundError
from protocol.http.routing import Endpoint, any_route, get_route, post_route, with_errors
from protocol.model_selection import ModelSelection, query_model
from protocol.openai.call_table import CALLS
from protocol.openai.errors import render_openai_error
from protocol.openai.forwarded_limits import CheckedBody, change_fields, check_forwarded
from protocol.openai.forwarding import Forwarded
from protocol.openai.model_list import find_base_model, list_model_cards, name_base_model
from protocol.openai_paths import (
    AT_ROOT,
    MODEL_CHAT,
    MODEL_LIST,
    OPENAI_PATHS,
    changes_models,
    find_openai_application,
    find_vllm_path,
    is_for_clients,
    is_served,
    list_openai_applications,
)
from runners.core.errors import ModelNotFoundError
from runners.core.input_log import log_inputs
from runners.core.request_limits import RequestLimits
from runners.core.runner import OpenAIApplication, Runner


def routes(context: ServerContext) -> list[Route]:
    """The routes below the prefix and below `/v1`."""
    prefix, api = context.openai_prefix, _Api(context)
    answer = with_openai_errors(api.answer)
    paths = dict.fromkeys([*(f"{prefix}{path}" for path in AT_ROOT if path.startswith("/v1/")), *AT_ROOT])
    listed = [Route(path, api.list_models) for path in ("/v1/models", MODEL_LIST)]
    found = [*listed, *(post_route(path, answer, render_openai_error) for path in paths)]
    found.append(
        post_route("{name:path}".join(MODEL_CHAT), with_openai_errors(api.answer_of_model), render_openai_error)
    )
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

    async def list_models(self, request: Request) -> Response:
        cards = await list_model_cards(self._models)
        if request.scope["path"] == MODEL_LIST:
            cards = [card | _OF_INFINITY for card in cards]
        return json_response({"object": "list", "data": cards, "models": self._models.names})

    async def retrieve_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        for card in await list_model_cards(self._models):
            if card["id"] == name:
                return json_response(card)
        raise ModelNotFoundError(name, self._models.names)

    async def answer(self, request: Request) -> Response:
        """Answer one of the table's paths, or hand it to vLLM."""
        return await self._answer(request, request.scope["path"].removeprefix(self._prefix))

    async def answer_of_model(self, request: Request) -> Response:
        """Answer a call whose path names the model; a name in the body does not count."""
        return await self._answer(request, MODEL_CHAT[1], request.path_params["name"])

    async def _answer(self, request: Request, path: str, given_name: str | None = None) -> Response:
        """
        Args:
            path: the path in the table of the call.
            given_name: the model; None if the body names it.
        """
        limits, outer = self._limits, request.scope["path"]
        selection = ModelSelection(self._models, outer, lambda runner: is_served(runner, path), "model in the body")
        # A request that the only model does not serve is refused before its body is read.
        runner = selection.select(given_name) if given_name is not None or len(self._models) == 1 else None
        has_body = request.method == "POST"
        # What only vLLM knows may have no body, or upload a file.
        is_unknown = path not in OPENAI_PATHS
        types = [FORM_TYPE] if is_unknown else []
        body = await read_body(request, limits, types, allow_empty=is_unknown) if has_body else Body(b"")
        if runner is None and self._may_forward(path):
            if _is_json(request, body) and not changes_models(path):
                name = await _read_name(body, limits)
            else:
                selection, name = replace(selection, parameter="?model="), query_model(request)
            runner = selection.select(await find_base_model(self._models, name))
        if runner is not None and (application := find_openai_application(runner)) is not None:
            return await self._forward(request, runner, application, path, body, given_name)
        if not has_body:
            raise MethodNotAllowedError(f"{request.method} is not allowed on {outer}; allowed: POST", allowed="POST")
        call = CALLS[OPENAI_PATHS[path].call]
        return await until_disconnect(
            request, call.answer(lambda name: selection.select(given_name or name), body, limits)
        )

    async def _forward(
        self,
        request: Request,
        runner: Runner,
        application: OpenAIApplication,
        path: str,
        body: Body,
        given_name: str | None,
    ) -> Response:
        """Hand a request to vLLM, with the body's limits checked and the model's name as vLLM knows it.

        Args:
            path, given_name: as in `_answer`.
        """
        limits = self._limits
        is_json = _is_json(request, body)
        checked = await body.check(lambda data: check_forwarded(data, limits)) if is_json else CheckedBody()
        if limits.log_inputs:
            log_inputs([body.data[: 4 * limits.log_inputs].decode("utf-8", "replace")], limits.log_inputs)
        media_type = request.headers["content-type"] if is_form(request) else "application/json"
        needless = {name: 0 for name, count in checked.token_limits.items() if count >= runner.max_length}
        named = {"model": runner.name}
        if given_name is None:
            named = await name_base_model(application, runner, checked.model)
        changes = {**checked.changes, **needless, **named}
        data = change_fields(body.data, changes) if changes else body.data
        return Forwarded(application, find_vllm_path(path), data, checked.characters, media_type)

    def _may_forward(self, path: str) -> bool:
        """Whether vLLM may answer a request, or nothing does."""
        entry = OPENAI_PATHS.get(path)
        return entry is None or entry.call not in CALLS or bool(list_openai_applications(self._models))

    async def answer_below_prefix(self, request: Request) -> Response:
        """Answer vLLM's further paths, if the model's vLLM has them."""
        path = request.scope["path"].removeprefix(self._prefix)
        if changes_models(path):
            self._access.check_change_over_http(request)
        # What an unloaded model serves is unknown.
        may_serve = any(model.runner is None or is_served(model.runner, path) for model in self._models)
        if may_serve and (changes_models(path) or is_for_clients(path)):
            return await self.answer(request)
        raise NotFoundError(f"there is nothing at {request.url.path}; OpenAI's API is at {self._prefix}/v1")


# What Infinity's client needs in the card of a model: it takes no other owner.
_OF_INFINITY = {"owned_by": "infinity", "stats": {}}


class _NamedBody(msgspec.Struct):
    model: str | None = None


_name_decoder = msgspec.json.Decoder(_NamedBody)


def _is_json(request: Request, body: Body) -> bool:
    return body.size > 0 and not is_form(request)


async def _read_name(body: Body, limits: RequestLimits) -> str | None:
    """The name of the model in a body whose other fields are not read yet."""
    named = await body.check(lambda data: decode_json(data, _name_decoder, limits))
    return named.model


def with_openai_errors(endpoint: Endpoint) -> Endpoint:
    """The endpoint, whose errors have the form of OpenAI's API."""
    return with_errors(endpoint, render_openai_error)
