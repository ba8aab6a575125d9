"""Weaviate's calls in the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus

from protocol.openapi.document import OpenApiDocument
from protocol.openapi.example_texts import HELLO
from protocol.openapi.operations import MODEL, Example, ExampleModel, Examples, json_answer, json_body
from protocol.openapi.schemas import COUNT, NUMBER, STRING, Schema, array_of, map_of, object_of, reference
from protocol.weaviate.routes import META_PATH, VECTORS_PATH, VectorsRequest, embeds
from runners.core.task import Task

_TAG = "Weaviate"
_VECTOR = array_of(NUMBER)
_SCHEMAS: dict[str, Schema] = {
    "VectorsResponse": {
        "anyOf": [
            object_of({"text": STRING, "vector": _VECTOR, "dim": COUNT, "dims": COUNT}),
            object_of({"vectors": array_of(_VECTOR), "dims": COUNT}),
        ]
    },
    "ModelMeta": map_of(STRING),
}


def describe(document: OpenApiDocument) -> None:
    """Add the two calls."""
    document.add_tag(_TAG, "The calls of Weaviate's module text2vec-transformers.")
    serving = [runner for runner in document.runners if embeds(runner)]
    if not serving:
        for method, path in (("post", VECTORS_PATH), ("get", META_PATH)):
            document.add_unserved(method, path, _TAG)
        return
    document.add_types(VectorsRequest)
    document.schemas |= _SCHEMAS
    query = document.describe_model_query(serving)
    examples = document.collect_examples(_list_examples)
    answers, body = {200: json_answer("VectorsResponse", examples)}, json_body(reference("VectorsRequest"), examples)
    document.paths.add(
        "post", VECTORS_PATH, _TAG, "Embed a text, or texts", answers, document.errors, body, query=query
    )
    meta, errors = {200: json_answer("ModelMeta")}, (HTTPStatus.BAD_REQUEST, *MODEL)
    document.paths.add("get", META_PATH, _TAG, "Get the properties of the model", meta, errors, query=query)


def _list_examples(model: ExampleModel) -> Examples:
    if model.task is not Task.TEXT_EMBEDDING:
        return {}
    config = {"pooling_strategy": "masked_mean", "task_type": "passage"}
    return {
        "text": Example("A text", {"text": HELLO, "config": config}),
        "texts": Example("Two texts", {"texts": [HELLO, "Hello"]}),
    }
