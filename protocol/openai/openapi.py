"""OpenAI's API and vLLM's further calls in the OpenAPI document."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from typing import Any

import orjson

from protocol.openai import generation_parameters, pooling_parameters
from protocol.openai.call_table import CALLS, OpenAICall
from protocol.openai.chats import ChatRequest
from protocol.openai.classify import ClassifyRequest
from protocol.openai.completions import CompletionRequest
from protocol.openai.embeddings import EmbeddingRequest
from protocol.openai.errors import error_body
from protocol.openai.examples import call_examples
from protocol.openai.openapi_schemas import ANSWER_SCHEMAS, CHUNK, EVENT
from protocol.openai.pooling import PoolingRequest
from protocol.openai.ranking import SIDES, RerankRequest, ScoreRequest
from protocol.openai.responses import ResponsesRequest
from protocol.openai.tokenize import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
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
)
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import (
    CALL,
    EVENTS,
    JSON,
    UNSERVED,
    ErrorForm,
    ExampleModel,
    Examples,
    json_answer,
    json_body,
    requests_of,
)
from protocol.openapi.schemas import Schema, reference
from runners.core.runner import Runner

_TAG = "OpenAI"
_ERRORS = ErrorForm("OpenAI", reference("OpenAIError"), error_body)
# By call: an event of its streams.
_STREAMED = {"completions": CHUNK, "chat/completions": CHUNK, "responses": EVENT}
# Calls that may answer with the bytes of arrays.
_BINARY = frozenset({"embeddings", "pooling"})


def describe(document: OpenApiDocument) -> None:
    """Add the calls that some model serves, and vLLM's own description where vLLM serves them."""
    document.add_tag(_TAG, "OpenAI's API.")
    _add_schemas(document)
    runners, prefix = document.runners, document.context.openai_prefix
    forwarded, schemas = _read_vllm(runners)
    document.schemas |= schemas
    for outer, path in _outer_paths(runners, prefix).items():
        name = OPENAI_PATHS[path].call
        examples = document.collect_examples(partial(_list_examples, document, name))
        serving = [runner for runner in runners if is_served(runner, path)]
        call = CALLS.get(name) if serving else None
        if (operations := forwarded.get(find_vllm_path(path))) is not None:
            if call is not None and any(find_openai_application(runner) is None for runner in serving):
                operations = {**operations, "post": _add_forms(operations["post"], call)}
            _add_forwarded(document, outer, operations, examples)
        elif call is not None:
            _add_answered(document, outer, name, call, examples)
        else:
            refusals = (*UNSERVED, HTTPStatus.NOT_FOUND) if "{name}" in outer else UNSERVED
            document.add_unserved("post", outer, _TAG, refusals, _ERRORS)
    cards = {200: json_answer("ModelCards")}
    document.paths.add("get", MODEL_LIST, _TAG, "List the models and LoRA adapters", cards, form=_ERRORS)
    if prefix:
        _add_below_prefix(document, prefix, forwarded)


def _list_examples(document: OpenApiDocument, call: str, model: ExampleModel) -> Examples:
    """The examples of a call; each names its model if other models may answer the call too."""
    examples = call_examples(model).get(call, {})
    if not document.has_several:
        return examples
    return {key: replace(each, request={"model": model.name, **each.request}) for key, each in examples.items()}


def _outer_paths(runners: Sequence[Runner], prefix: str) -> dict[str, str]:
    """vLLM's paths in the table, by the paths that this server has for them."""
    by_outer = {path: path for path in AT_ROOT} | {"{name}".join(MODEL_CHAT): MODEL_CHAT[1]}
    if prefix:
        served = [path for path in OPENAI_PATHS if any(is_served(runner, path) for runner in runners)]
        further = [path for path in served if not path.startswith("/v1/")]
        by_outer |= {f"{prefix}{path}": path for path in AT_ROOT if path.startswith("/v1/")}
        by_outer |= {f"{prefix}{path}": path for path in further}
    return by_outer


def _add_below_prefix(document: OpenApiDocument, prefix: str, forwarded: Mapping[str, Any]) -> None:
    """Add what is served below the prefix only: models, and vLLM's further paths."""
    paths, cards = document.paths, {200: json_answer("ModelCards")}
    paths.add("get", f"{prefix}/v1/models", _TAG, "List the models and LoRA adapters", cards, form=_ERRORS)
    card = {200: json_answer("ModelCard")}
    paths.add("get", f"{prefix}/v1/models/{{name}}", _TAG, "Get a model", card, (HTTPStatus.NOT_FOUND,), form=_ERRORS)
    for path, operations in forwarded.items():
        is_change = changes_models(path)
        if f"{prefix}{path}" not in paths.items and (is_change or is_for_clients(path)):
            _add_forwarded(document, f"{prefix}{path}", operations, {}, is_change)


def _add_answered(document: OpenApiDocument, path: str, name: str, call: OpenAICall, examples: Examples) -> None:
    """Add an operation that this server answers itself."""
    answer = json_answer(call.response, examples)
    if (event := _STREAMED.get(name)) is not None:
        answer["content"][EVENTS] = {"schema": event}
    if name in _BINARY:
        answer["content"]["application/octet-stream"] = {"schema": {"type": "string", "format": "binary"}}
    body = json_body(reference(call.request), examples)
    document.paths.add("post", path, _TAG, call.summary, {200: answer}, document.errors, body, form=_ERRORS)


def _add_forwarded(
    document: OpenApiDocument,
    path: str,
    operations: Mapping[str, Any],
    examples: Examples,
    is_change: bool = False,
) -> None:
    """Add an operation that vLLM answers, in vLLM's description; this server adds the errors of its own checks."""
    for method, operation in operations.items():
        # FastAPI lists its own 422, which vLLM's application never answers with.
        answers = {int(status): answer for status, answer in operation["responses"].items() if status != "422"}
        body = operation.get("requestBody")
        if body is not None and examples:
            body["content"][JSON]["examples"] = requests_of(examples)
        errors = [status for status in CALL if status not in answers]
        summary = operation.get("summary", "")
        document.paths.add(method, path, _TAG, summary, answers, errors, body, form=_ERRORS, is_change=is_change)


def _add_forms(operation: Mapping[str, Any], call: OpenAICall) -> dict[str, Any]:
    """vLLM's operation, with the forms of this server's own answers, which other models give at the same path."""
    added: dict[str, Any] = copy.deepcopy({**operation})
    for message, name in ((added["requestBody"], call.request), (added["responses"]["200"], call.response)):
        content = message["content"][JSON]
        content["schema"] = {"anyOf": [content["schema"], reference(name)]}
    return added


def _read_vllm(runners: Sequence[Runner]) -> tuple[dict[str, Any], dict[str, Schema]]:
    """The paths in vLLM's own documents, and its schemas under names that this server's schemas do not have."""
    paths: dict[str, Any] = {}
    schemas: dict[str, Schema] = {}
    for runner in runners:
        if (application := find_openai_application(runner)) is not None:
            written = orjson.dumps(application.openapi())
            vllm = orjson.loads(written.replace(b'"#/components/schemas/', b'"#/components/schemas/vLLM.'))
            # All models have the same vLLM, but not the same paths.
            paths = vllm["paths"] | paths
            schemas |= {f"vLLM.{name}": schema for name, schema in vllm["components"]["schemas"].items()}
    paths.pop("/v1/models", None)
    return paths, schemas


def _add_schemas(document: OpenApiDocument) -> None:
    generation = (CompletionRequest, ChatRequest, ResponsesRequest)
    pooling = (
        EmbeddingRequest,
        RerankRequest,
        ScoreRequest,
        ClassifyRequest,
        PoolingRequest,
        TokenizeTextRequest,
        TokenizeChatRequest,
        DetokenizeRequest,
    )
    schemas = document.add_types(*generation, *pooling)
    for kinds, meanings in ((generation, generation_parameters.MEANINGS), (pooling, pooling_parameters.MEANINGS)):
        for kind in kinds:
            _add_meanings(document.schemas[kind.__name__], meanings)
    _add_meanings(document.schemas["SamplingParameters"], generation_parameters.MEANINGS)
    schemas["ScoreRequest"]["anyOf"] = [{"required": [*names]} for names in SIDES]
    forms = [reference("TokenizeTextRequest"), reference("TokenizeChatRequest")]
    document.schemas |= {**ANSWER_SCHEMAS, "TokenizeRequest": {"anyOf": forms}}


def _add_meanings(schema: Schema, meanings: Mapping[str, str]) -> None:
    for name, field in schema["properties"].items():
        if (meaning := meanings.get(name)) is not None:
            field["description"] = meaning
