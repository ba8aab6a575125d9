"""Triton's model repository extension: the list of models, and their loading and unloading.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_model_repository.md
The answers to load and unload have KServe's fields; Triton's have none.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import Body, decode_json, json_response, read_body
from protocol.http.middleware.authentication import Access
from protocol.http.routing import post_route
from runners.core.errors import InputError
from runners.core.models import Models
from runners.core.request_limits import RequestLimits
from runners.core.served_model import ModelState


class IndexRequest(msgspec.Struct):
    """The body of `index`, which may be empty."""

    ready: bool = False


class LoadRequest(msgspec.Struct):
    """The body of `load`, which may be empty."""

    parameters: dict[str, Any] | None = None


_index_decoder = msgspec.json.Decoder(IndexRequest)
_load_decoder = msgspec.json.Decoder(LoadRequest)


async def index(models: Models, ready: bool) -> list[dict[str, str]]:
    """The models with their states, new ones of the repository included; if `ready`, only those that are ready.

    Raises:
        ArgumentsError: the declaration of a new model is wrong.
    """
    await models.refresh()
    return [
        {"name": name, "version": model.version, "state": model.state, "reason": model.reason}
        for model in models
        for name in model.names
        if model.state is ModelState.READY or not ready
    ]


async def load(models: Models, name: str, parameters: Container[str] = ()) -> None:
    """Load a model, unless it is loaded and its files have not changed.

    Args:
        parameters: Triton's, which change a model's config and files; here only the operator may change them.

    Raises:
        InputError: there are parameters.
        ModelNotFoundError: there is no model of that name.
        RunnerError: the model cannot be loaded.
    """
    if parameters:
        raise InputError("load takes no parameters: a model is loaded as the operator has declared it")
    await models.load(name)


def routes(models: Models, limits: RequestLimits, access: Access) -> list[Route]:
    """The routes under `/v2/repository`."""

    async def read_optional(request: Request) -> Body:
        has_body = request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
        return await read_body(request, limits) if has_body else Body(b"{}")

    async def list_models(request: Request) -> Response:
        body = await read_optional(request)
        call = await body.decode(lambda data: decode_json(data, _index_decoder, limits))
        return json_response(await index(models, call.ready))

    async def load_model(request: Request) -> Response:
        access.check_change_over_http(request)
        name = request.path_params["name"]
        body = await read_optional(request)
        call = await body.decode(lambda data: decode_json(data, _load_decoder, limits))
        await load(models, name, call.parameters or {})
        return json_response({"name": name, "load": True})

    async def unload_model(request: Request) -> Response:
        access.check_change_over_http(request)
        name = request.path_params["name"]
        await models.unload(name)
        return json_response({"name": name, "unload": True})

    def repository_route(path: str, endpoint: Any) -> list[Route]:
        # Triton has several repositories by name; here every name means the only repository.
        return [post_route(f"/v2/repository{form}{path}", endpoint) for form in ("", "/{repository}")]

    return [
        *repository_route("/index", list_models),
        *repository_route("/models/{name:path}/load", load_model),
        *repository_route("/models/{name:path}/unload", unload_model),
    ]
