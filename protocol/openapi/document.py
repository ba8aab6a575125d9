"""The OpenAPI document of this server, and the page that shows it.

Bodies of requests are described by the types that parse them, or by vLLM where that answers, so that document and
parser cannot disagree. https://spec.openapis.org/oas/v3.1.1.html
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from protocol.http.body import STRUCTURED_EVENT_TYPE
from protocol.http.middleware.authentication import Access
from protocol.open_inference.rest import BINARY_HEADER
from protocol.openai.endpoints import AT_ROOT, ENDPOINTS, OpenAIEndpoint, changes_models, is_for_clients, is_served
from protocol.openai.routes import normalize_prefix
from protocol.openapi.examples import Example, Examples, describe_examples
from protocol.openapi.operations import (
    BINARY,
    EVENTS,
    JSON,
    Paths,
    content_of,
    json_answer,
    json_body,
    requests_of,
    text_answer,
)
from protocol.openapi.request_schemas import request_schemas
from protocol.openapi.schemas import COUNT, STRING, Schema, answer_schemas, event_of, object_of, reference
from protocol.tei.routes import TASKS as TEI_TASKS
from protocol.versions import SERVER_NAME, SERVER_VERSION
from runners.core.arguments import Arguments
from runners.core.models import Models
from runners.core.runner import Runner

_BODY = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
_MODEL = (HTTPStatus.NOT_FOUND, HTTPStatus.SERVICE_UNAVAILABLE)
_CALL = (*_BODY, *_MODEL, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INTERNAL_SERVER_ERROR)
_ANY = {"description": "OK", "content": {JSON: {"schema": {"type": "object"}}}}
_UNSERVED = "This server's model does not serve it"
_PREDICTOR = (HTTPStatus.BAD_GATEWAY, HTTPStatus.GATEWAY_TIMEOUT)
_TAGS = {
    "V1": "KServe's V1 protocol",
    "Open Inference Protocol": "V2, with the binary tensors, classification and generate extensions",
    "OpenAI": "OpenAI's API",
    "TEI": "Text Embeddings Inference's calls",
    "Repository": "Triton's model repository extension",
    "Server": "Health, metrics and this document",
    "BentoML": "BentoML's own",
}
_DESCRIPTION = (
    "Everywhere: `HEAD` where there is `GET`, and `OPTIONS`; request bodies in gzip or deflate, and answers over 1 KiB "
    "for clients that ask for one of them; `X-Request-Id` comes back. Bodies without a content type, and curl's "
    "`application/x-www-form-urlencoded`, are read as JSON. Names of models may have slashes, as they are or as `%2F`."
)


def routes(models: Models, arguments: Arguments, access: Access, openai_prefix: str) -> list[Route]:
    """`/openapi.json`, BentoML's `/docs.json`, and `/docs`."""
    made: bytes | None = None

    async def document(_: Request) -> Response:
        nonlocal made
        if made is not None:
            return Response(made, media_type=JSON)
        ready = models.ready
        # In a thread, since vLLM's part takes a second.
        described = await asyncio.to_thread(describe_server, models, arguments, access, openai_prefix)
        body = orjson.dumps(described)
        if ready:
            # Only now it is known what the model does.
            made = body
        return Response(body, media_type=JSON)

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE)

    return [Route("/openapi.json", document), Route("/docs.json", document), Route("/docs", page)]


# Swagger UI is where BentoML has it; all paths are relative, so that the page also works behind a path prefix.
_PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{SERVER_NAME}</title>
<link rel="stylesheet" href="static_content/swagger-ui.css">
<link rel="icon" type="image/png" href="static_content/favicon-light-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="static_content/swagger-ui-bundle.js" charset="utf-8"></script>
<script>
SwaggerUIBundle({{url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null}});
</script>
</body>
</html>
"""


def describe_server(models: Models, arguments: Arguments, access: Access, openai_prefix: str) -> dict[str, Any]:
    """The document; complete once the model is ready."""
    runner = models.first
    paths = Paths(models.names, access)
    errors = _CALL if arguments.predictor_host is None else (*_CALL, *_PREDICTOR)
    components = {**answer_schemas(runner.task), **request_schemas(runner)}
    mask = runner.properties.get("mask_token", "[MASK]") if runner.ready else "[MASK]"
    examples = describe_examples(runner.task, runner.name, mask)
    _add_server(paths)
    _add_v1(paths, examples, errors)
    _add_open_inference(paths, examples, errors, runner)
    _add_repository(paths)
    _add_tei(paths, examples, errors, runner)
    components |= _add_openai(paths, examples, errors, runner, normalize_prefix(openai_prefix))
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": SERVER_NAME, "version": SERVER_VERSION, "description": _DESCRIPTION},
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths.items,
        "components": {"schemas": components, "responses": paths.responses},
    }
    schemes = {"bearer": access.asks_clients, "admin": access.asks_admins}
    if found := {name: {"type": "http", "scheme": "bearer"} for name, asked in schemes.items() if asked}:
        document["components"]["securitySchemes"] = found
    if access.asks_clients:
        document["security"] = [{"bearer": []}]
    return document


def _add_server(paths: Paths) -> None:
    unready = {503: json_answer("Ready", description="Not all models are loaded")}
    dead = {503: json_answer("Live", description="A model has died")}
    paths.add("get", "/", "Server", "The process lives", {200: json_answer("Alive")})
    paths.add("get", "/v2", "Server", "Name and version", {200: json_answer("ServerMetadata")})
    paths.add("get", "/v2/health/live", "Server", "The process lives", {200: json_answer("Live"), **dead})
    paths.add(
        "get",
        "/v2/health/ready",
        "Server",
        "All models are loaded",
        {200: json_answer("Ready"), **unready},
    )
    paths.add("get", "/metrics", "Server", "Prometheus metrics", {200: text_answer()})
    for path in ("/openapi.json", "/docs.json"):
        paths.add("get", path, "Server", "This document", {200: _ANY})
    paths.add("get", "/docs", "Server", "This document as a page", {200: text_answer("text/html")})
    for path, summary in {
        "/livez": "The process lives",
        "/healthz": "The same",
        "/readyz": "The model is loaded",
    }.items():
        answers = {200: text_answer(), 503: text_answer(description="Not so")}
        paths.add("get", path, "BentoML", summary, answers, shape="BentoML")
    answers = {200: _ANY}
    paths.add("get", "/schema.json", "BentoML", "The service", answers, shape="BentoML")


def _add_v1(paths: Paths, examples: Examples, errors: Sequence[HTTPStatus]) -> None:
    given = examples.get("predict", {})
    model = "/v1/models/{name}"
    body = json_body(reference("PredictRequest"), given)
    body["content"][STRUCTURED_EVENT_TYPE] = content_of(reference("PredictEvent"), _events_of(given))
    answer = json_answer("PredictResponse", given)
    answer["content"][STRUCTURED_EVENT_TYPE] = {"schema": reference("PredictedEvent")}
    paths.add("get", "/v1/models", "V1", "The models, for OpenAI's clients too", {200: json_answer("ModelCards")})
    paths.add("get", model, "V1", "A model is ready", {200: json_answer("ModelStatus")}, _MODEL)
    paths.add("post", f"{model}:predict", "V1", "Ask a model", {200: answer}, errors, body)
    paths.add("post", f"{model}:explain", "V1", "There is no explainer", {}, (*_MODEL, HTTPStatus.NOT_IMPLEMENTED))


def _events_of(examples: Mapping[str, Example]) -> dict[str, Any]:
    """The examples' requests as CloudEvents."""
    attributes = {"specversion": "1.0", "id": "1", "source": "https://example.com", "type": "question"}
    return {
        key: {"summary": each.summary, "value": {**attributes, "data": each.request}} for key, each in examples.items()
    }


def _add_open_inference(paths: Paths, examples: Examples, errors: Sequence[HTTPStatus], runner: Runner) -> None:
    tag = "Open Inference Protocol"
    texts, binaries = examples.get("infer", {}), examples.get("infer_binary", {})
    body = json_body(reference("InferRequest"), texts)
    body["content"][BINARY] = content_of({"type": "string", "format": "binary"}, requests_of(binaries))
    answer = json_answer("InferResponse", texts)
    answer["content"][BINARY] = {"schema": {"type": "string", "format": "binary"}}
    answer["headers"] = {BINARY_HEADER: {"description": "the bytes of the JSON before binary tensors", "schema": COUNT}}
    generates = runner.generator is not None and runner.generator.generates
    event = event_of(reference("GenerateEvent"), reference("Error"))
    stream = {"description": "A stream of events", "content": {EVENTS: {"schema": event}}}
    paths.add("get", "/v2/models", tag, "The models", {200: json_answer("ModelNames")})
    for form in ("", "/versions/{version}"):
        model = f"/v2/models/{{name}}{form}"
        paths.add("get", model, tag, "What a model takes and returns", {200: json_answer("ModelMetadata")}, _MODEL)
        paths.add("get", f"{model}/ready", tag, "A model is ready", {200: json_answer("ModelReady")}, _MODEL)
        paths.add("post", f"{model}/infer", tag, "Ask a model", {200: answer}, errors, body, {BINARY_HEADER: COUNT})
        for verb, found in (
            ("generate", json_answer("GenerateResponse", examples.get("generate"))),
            ("generate_stream", stream),
        ):
            if generates:
                asked = json_body(reference("GenerateRequest"), examples.get(verb))
                paths.add("post", f"{model}/{verb}", tag, "Continue a text", {200: found}, _CALL, asked)
            else:
                paths.add("post", f"{model}/{verb}", tag, _UNSERVED, {}, (*_MODEL, HTTPStatus.BAD_REQUEST))


def _add_repository(paths: Paths) -> None:
    changes = (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.NOT_IMPLEMENTED)
    for form in ("", "/{repository}"):
        base = f"/v2/repository{form}"
        paths.add(
            "post", f"{base}/index", "Repository", "The models and their states", {200: json_answer("RepositoryIndex")},
            _BODY, json_body(reference("IndexRequest"), required=False),
        )  # fmt: skip
        for verb, summary in (("load", "Load a model"), ("unload", "Unload a model")):
            answers = {200: json_answer(f"{verb.title()}ed")}
            paths.add("post", f"{base}/models/{{name}}/{verb}", "Repository", summary, answers, changes, is_change=True)


def _add_tei(paths: Paths, examples: Examples, errors: Sequence[HTTPStatus], runner: Runner) -> None:
    for path, tasks in TEI_TASKS.items():
        if runner.task not in tasks:
            refusals = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
            paths.add("post", path, "TEI", _UNSERVED, {}, refusals, shape="TEI")
            continue
        asked, answered, summary = _TEI[path]
        given = examples.get(path, {})
        answers = {200: json_answer(answered, given)}
        possible = [status for status in errors if status is not HTTPStatus.NOT_FOUND]
        paths.add("post", path, "TEI", summary, answers, possible, json_body(reference(asked), given), shape="TEI")


_TEI = {
    "/embed": ("TeiEmbedRequest", "TeiEmbedResponse", "Embed texts"),
    "/predict": ("TeiPredictRequest", "TeiPredictResponse", "Classify texts"),
    "/rerank": ("TeiRerankRequest", "TeiRerankResponse", "Rank texts by a query"),
}


def _add_openai(
    paths: Paths, examples: Examples, errors: Sequence[HTTPStatus], runner: Runner, prefix: str
) -> dict[str, Schema]:
    """Add OpenAI's API, and return the schemas of vLLM's part in it."""
    paths_of_vllm, schemas = _read_vllm(runner)
    by_path = {path: path for path in AT_ROOT}
    if prefix:
        further = [path for path in ENDPOINTS if not path.startswith("/v1/") and is_served(runner, path)]
        by_path |= {f"{prefix}{path}": path for path in (*(each for each in AT_ROOT if each[:4] == "/v1/"), *further)}
    for outer, path in by_path.items():
        endpoint = ENDPOINTS[path]
        given = examples.get(endpoint.name, {})
        if (operations := paths_of_vllm.get(path)) is not None:
            _add_forwarded(paths, outer, operations, given)
        elif is_served(runner, path):
            _add_answered(paths, outer, endpoint, given, errors)
        else:
            refusals = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
            paths.add("post", outer, "OpenAI", _UNSERVED, {}, refusals, shape="OpenAI")
    if not prefix:
        return schemas
    answers = {200: json_answer("ModelCards")}
    paths.add("get", f"{prefix}/v1/models", "OpenAI", "The models and LoRA modules", answers, shape="OpenAI")
    found = {200: json_answer("ModelCard")}
    model = f"{prefix}/v1/models/{{name}}"
    paths.add("get", model, "OpenAI", "A model", found, (HTTPStatus.NOT_FOUND,), shape="OpenAI")
    for path, operations in paths_of_vllm.items():
        is_change = changes_models(path)
        if f"{prefix}{path}" not in paths.items and (is_change or is_for_clients(path)):
            _add_forwarded(paths, f"{prefix}{path}", operations, {}, is_change)
    return schemas


def _add_answered(
    paths: Paths, path: str, endpoint: OpenAIEndpoint, examples: Mapping[str, Example], errors: Sequence[HTTPStatus]
) -> None:
    """Add an operation that this server answers itself."""
    answer = json_answer(endpoint.response, examples)
    if (event := _STREAMED.get(endpoint.name)) is not None:
        answer["content"][EVENTS] = {"schema": event}
    body = json_body(reference(endpoint.request), examples)
    paths.add("post", path, "OpenAI", endpoint.summary, {200: answer}, errors, body, shape="OpenAI")


_CHUNK = object_of({"data": {**STRING, "description": "a chunk as JSON, or an OpenAIError; at the end [DONE]"}})
_EVENT = object_of(
    {"event": STRING, "data": {**STRING, "description": "an event as JSON, of the type that is its name"}}
)
_STREAMED = {"completions": _CHUNK, "chat/completions": _CHUNK, "responses": _EVENT}


def _add_forwarded(
    paths: Paths,
    path: str,
    operations: Mapping[str, Any],
    examples: Mapping[str, Example],
    is_change: bool = False,
) -> None:
    """Add what vLLM answers, as it describes it; what is refused before it gets there is this server's."""
    for method, operation in operations.items():
        # 422 is FastAPI's own, which vLLM's application never answers with.
        answers = {int(status): answer for status, answer in operation["responses"].items() if status != "422"}
        body = operation.get("requestBody")
        if body is not None and examples:
            body["content"][JSON]["examples"] = requests_of(examples)
        errors = [status for status in _CALL if status not in answers]
        summary = operation.get("summary", "")
        paths.add(method, path, "OpenAI", summary, answers, errors, body, shape="OpenAI", is_change=is_change)


def _read_vllm(runner: Runner) -> tuple[dict[str, Any], dict[str, Schema]]:
    """The paths that vLLM's own document describes, and its schemas under names that no others have."""
    application: Any = None if runner.generator is None else runner.generator.openai_application
    if application is None:
        return {}, {}
    written = orjson.dumps(application.openapi()).replace(b'"#/components/schemas/', b'"#/components/schemas/vLLM.')
    document = orjson.loads(written)
    paths = {path: operations for path, operations in document["paths"].items() if path != "/v1/models"}
    return paths, {f"vLLM.{name}": schema for name, schema in document["components"]["schemas"].items()}
