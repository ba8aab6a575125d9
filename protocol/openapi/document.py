"""The OpenAPI document of this server, and the page that shows it.

Each protocol describes its own operations. The schemas of request bodies come from the types that parse them, or from
vLLM if vLLM answers, so that the document and the parser cannot disagree. https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from http import HTTPStatus
from typing import Any

import msgspec
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.context import ServerContext
from protocol.http.open_paths import PLAYGROUND_PATH
from protocol.http.path_prefix import PREFIX_HEADER, ends_with_slash, find_prefix
from protocol.openapi.example_texts import MASK
from protocol.openapi.operations import (
    CALL,
    JSON,
    KSERVE_ERRORS,
    PREDICTOR,
    TEXT,
    UNSERVED,
    ErrorForm,
    ExampleModel,
    Examples,
    Paths,
    json_answer,
    text_answer,
)
from protocol.openapi.parameter_schemas import describe_parameters
from protocol.openapi.schemas import COMMON_SCHEMAS, STRING, Schema, one_of
from protocol.versions import SERVER_NAME, SERVER_VERSION
from runners.core.models import Models
from runners.core.probe_paths import LIVE_PATHS, LOAD_PATH, READY_PATHS, VERSION_PATH
from runners.core.runner import Runner
from runners.core.sampling_parameters import SamplingParameters

_BENTOML_ERRORS = ErrorForm("BentoML", STRING, media_type=TEXT)
_ANY = {"description": "OK", "content": {JSON: {"schema": {"type": "object"}}}}
_DESCRIPTION = (
    "Every path with `GET` also answers `HEAD` and `OPTIONS`. Request bodies may be compressed with gzip or deflate. "
    "Answers over 1 KiB are compressed for clients that accept gzip or deflate. Answers repeat the request's "
    "`X-Request-Id`. The server reads a body as JSON if it has no content type, or the type that curl sends by default "
    "(`application/x-www-form-urlencoded`). A model's name in a path may contain slashes, written as `/` or `%2F`."
)


class OpenApiDocument:
    """The document, to which each protocol adds its tags, operations and schemas.

    Attributes:
        context: the server.
        runners: the runner of each model, also of one that is being loaded; without a version the one that answers.
        errors: the statuses of a call of a model that fails.
    """

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        models = context.models.choose_versions()
        self.runners = [model.runner for model in models if model.runner is not None]
        self.has_several = len(models) > 1
        versions = dict.fromkeys(model.version for model in context.models)
        self.paths = Paths(context.models.names, [*versions], context.access)
        self.schemas: dict[str, Schema] = {**COMMON_SCHEMAS}
        on_predictor = any(model.declaration.arguments.predictor_host is not None for model in models)
        self.errors = (*CALL, *PREDICTOR) if on_predictor else CALL
        self._tags: dict[str, str] = {}
        sampling = self.add_types(SamplingParameters)["SamplingParameters"]
        self.schemas |= describe_parameters(self.runners, sampling)

    def collect_examples(self, describe: Callable[[ExampleModel], Examples]) -> Examples:
        """The examples that `describe` has of each model; where there are several models, each example names its."""
        models = [describe_example_model(runner) for runner in self.runners]
        if not self.has_several:
            return {key: each for model in models for key, each in describe(model).items()}
        return {
            f"{model.name}: {key}": replace(each, summary=f"{model.name}: {each.summary}")
            for model in models
            for key, each in describe(model).items()
        }

    def add_unserved(
        self, method: str, path: str, tag: str, errors: Iterable[HTTPStatus] = UNSERVED, form: ErrorForm = KSERVE_ERRORS
    ) -> None:
        """Add an operation that no model of this server has.

        Args:
            errors: the statuses of its answers, all of which are errors.
        """
        summary = f"Not served by this server's model{'s' if self.has_several else ''}"
        self.paths.add(method, path, tag, summary, {}, errors, form=form)

    def describe_model_query(self, serving: Sequence[Runner]) -> dict[str, Schema] | None:
        """The parameter of a request's query that names one of the models; None if the server has only one model."""
        if not self.has_several:
            return None
        return {"model": {**STRING, **one_of(*(name for runner in serving for name in runner.names))}}

    def add_tag(self, name: str, description: str) -> None:
        self._tags[name] = description

    def add_types(self, *types: type[msgspec.Struct]) -> dict[str, Schema]:
        """Add the schemas of the types that parse bodies, and return them by name."""
        _, schemas = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
        self.schemas |= schemas
        return schemas

    def build(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "openapi": "3.1.0",
            "info": {"title": SERVER_NAME, "version": SERVER_VERSION, "description": _DESCRIPTION},
            "tags": [{"name": name, "description": description} for name, description in self._tags.items()],
            "paths": self.paths.items,
            "components": {"schemas": self.schemas, "responses": self.paths.responses},
        }
        access = self.context.access
        schemes = {"bearer": access.asks_clients, "admin": access.asks_admins}
        if used := {name: {"type": "http", "scheme": "bearer"} for name, is_used in schemes.items() if is_used}:
            document["components"]["securitySchemes"] = used
        if access.asks_clients:
            document["security"] = [{"bearer": []}]
        return document


def describe_example_model(runner: Runner) -> ExampleModel:
    mask = runner.properties.get("mask_token", MASK) if runner.ready else MASK
    return ExampleModel(runner.name, runner.version, runner.task, mask)


Describe = Callable[[OpenApiDocument], None]


def describe_server(context: ServerContext, protocols: Sequence[Describe]) -> dict[str, Any]:
    """The document; complete once all models are ready."""
    document = OpenApiDocument(context)
    for describe in protocols:
        describe(document)
    _describe_server_paths(document)
    return document.build()


def _describe_server_paths(document: OpenApiDocument) -> None:
    document.add_tag("Server", "Health, metrics and this document.")
    document.add_tag("BentoML", "Paths that BentoML answers.")
    paths = document.paths
    unready = {503: json_answer("Ready", description="A model is not loaded, or the server ends.")}
    dead = {503: json_answer("Live", description="A model has stopped and does not answer any more.")}
    paths.add("get", "/", "Server", "Check whether the server is live", {200: json_answer("Alive")})
    if document.context.arguments.enable_playground:
        paths.add("get", PLAYGROUND_PATH, "Server", "Show a page to try the models on", {200: text_answer("text/html")})
    paths.add(
        "get", "/v2", "Server", "Get the server's name, version and extensions", {200: json_answer("ServerMetadata")}
    )
    for path in LIVE_PATHS:
        paths.add("get", path, "Server", "Check whether the server is live", {200: json_answer("Live"), **dead})
    for path in READY_PATHS:
        paths.add("get", path, "Server", "Check whether the server is ready", {200: json_answer("Ready"), **unready})
    paths.add("get", VERSION_PATH, "Server", "Get the server's version", {200: json_answer("Version")})
    paths.add("get", LOAD_PATH, "Server", "Get the number of requests under way", {200: json_answer("Load")})
    paths.add("get", "/metrics", "Server", "Get metrics for Prometheus", {200: text_answer()})
    for path in ("/openapi.json", "/docs.json"):
        paths.add("get", path, "Server", "Get this document", {200: _ANY})
    paths.add("get", "/docs", "Server", "Show this document as a page", {200: text_answer("text/html")})
    paths.add(
        "get", "/schema.json", "BentoML", "Get BentoML's description of the service", {200: _ANY}, form=_BENTOML_ERRORS
    )


def routes(context: ServerContext, protocols: Sequence[Describe]) -> list[Route]:
    """`/openapi.json`, BentoML's `/docs.json`, and `/docs`."""
    cached: tuple[list[Any], bytes] | None = None

    async def document(request: Request) -> Response:
        return _answer(_add_servers(await describe(), find_prefix(request.scope)), JSON)

    async def describe() -> bytes:
        nonlocal cached
        states = _describe_states(context.models)
        # Nothing better is known while no model is ready, as after the unload of the only one.
        if cached is not None and (cached[0] == states or not any(model.ready for model in context.models)):
            return cached[1]
        is_complete = context.models.ready
        # vLLM takes a second to describe its part.
        described = await asyncio.to_thread(describe_server, context, protocols)
        body = orjson.dumps(described)
        if is_complete:
            cached = states, body
        return body

    async def page(request: Request) -> Response:
        # Relative links also work where a proxy removes a prefix and does not say which.
        nearby = "../" if ends_with_slash(request.scope) else ""
        prefix = find_prefix(request.scope)
        return _answer(_PAGE.replace(_BASE, f"{prefix}/" if prefix else nearby).encode(), "text/html")

    return [Route("/openapi.json", document), Route("/docs.json", document), Route("/docs", page)]


def _answer(body: bytes, media_type: str) -> Response:
    """An answer that a cache hands only to clients behind the same prefix."""
    return Response(body, media_type=media_type, headers={"vary": PREFIX_HEADER})


def _add_servers(document: bytes, prefix: str) -> bytes:
    """The document, in JSON, with the prefix of its paths."""
    if not prefix:
        return document
    return b'{"servers":' + orjson.dumps([{"url": prefix}]) + b"," + document[1:]


def _describe_states(models: Models) -> list[Any]:
    """What the document depends on; it does not keep the runners of unloaded models in memory."""
    return [(model, model.ready, None if model.runner is None else weakref.ref(model.runner)) for model in models]


# Stands in the page for what its links begin with.
_BASE = "{base}"
# BentoML carries Swagger UI.
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{SERVER_NAME}</title>
<link rel="stylesheet" href="{_BASE}static_content/swagger-ui.css">
<link rel="icon" type="image/png" href="{_BASE}static_content/favicon-light-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_BASE}static_content/swagger-ui-bundle.js" charset="utf-8"></script>
<script>
SwaggerUIBundle({{url: "{_BASE}openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null}});
</script>
</body>
</html>
"""
