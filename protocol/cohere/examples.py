"""Examples of requests of Cohere's API."""

from __future__ import annotations

from protocol.openapi.example_texts import HELLO
from protocol.openapi.operations import Example, ExampleModel, Examples
from runners.core.task import Task


def list_examples(path: str, model: ExampleModel) -> Examples:
    """The examples of a path for a model."""
    match path:
        case "/v1/tokenize":
            return {"text": Example("A text", {"model": model.name, "text": HELLO})}
        case "/v1/detokenize":
            return {"tokens": Example("Three tokens", {"model": model.name, "tokens": [5, 6, 7]})}
    if model.task is not Task.TEXT_EMBEDDING:
        return {}
    request = {"model": model.name, "texts": [HELLO], "input_type": "search_document"}
    return {
        "text": Example("A text", request),
        "bits": Example("A text as bits", {**request, "embedding_types": ["binary"], "truncate": "END"}),
    }
