"""Cohere's calls in the OpenAPI document."""

from __future__ import annotations

from functools import partial

from protocol.cohere.errors import error_body
from protocol.cohere.examples import list_examples
from protocol.cohere.requests import CohereDetokenizeRequest, CohereEmbedRequest, CohereTokenizeRequest
from protocol.cohere.routes import CALLS
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import ErrorForm, json_answer, json_body
from protocol.openapi.schemas import COUNT, INTEGER, NUMBER, STRING, Schema, array_of, object_of, one_of, reference

_TAG = "Cohere"
_ERRORS = ErrorForm("Cohere", reference("CohereError"), error_body)
# By path: the schemas of the request and the answer, and the summary.
_OPERATIONS = {
    "/v1/embed": ("CohereEmbedRequest", "CohereEmbedResponse", "Embed texts"),
    "/v2/embed": ("CohereEmbedRequest", "CohereEmbeddingsByType", "Embed texts"),
    "/v1/tokenize": ("CohereTokenizeRequest", "CohereTokenizeResponse", "Tokenize a text"),
    "/v1/detokenize": ("CohereDetokenizeRequest", "CohereDetokenizeResponse", "Detokenize tokens"),
}
_META = object_of({"api_version": object_of({"version": STRING})}, {"billed_units": object_of({"input_tokens": COUNT})})
_NUMBERS, _INTEGERS = array_of(array_of(NUMBER)), array_of(array_of(INTEGER))
_HEAD = {"id": STRING, "texts": array_of(STRING), "meta": _META}
_SCHEMAS: dict[str, Schema] = {
    "CohereError": object_of({"message": STRING}),
    "CohereEmbeddingsByType": object_of(
        {
            **_HEAD,
            "response_type": one_of("embeddings_by_type"),
            "embeddings": object_of(
                {},
                {
                    "float": _NUMBERS, "int8": _INTEGERS, "uint8": _INTEGERS, "binary": _INTEGERS, "ubinary": _INTEGERS,
                    "base64": array_of({**STRING, "contentEncoding": "base64"}),
                },
            ),
        }
    ),
    "CohereEmbeddingsFloats": object_of(
        {**_HEAD, "response_type": one_of("embeddings_floats"), "embeddings": _NUMBERS}
    ),
    "CohereEmbedResponse": {"anyOf": [reference("CohereEmbeddingsFloats"), reference("CohereEmbeddingsByType")]},
    "CohereTokenizeResponse": object_of({"tokens": array_of(COUNT), "token_strings": array_of(STRING), "meta": _META}),
    "CohereDetokenizeResponse": object_of({"text": STRING, "meta": _META}),
}  # fmt: skip


def describe(document: OpenApiDocument) -> None:
    """Add the calls."""
    document.add_tag(_TAG, "Cohere's API.")
    document.add_types(CohereEmbedRequest, CohereTokenizeRequest, CohereDetokenizeRequest)
    document.schemas |= _SCHEMAS
    for path, (request, response, summary) in _OPERATIONS.items():
        if not any(CALLS[path].serves(runner) for runner in document.runners):
            document.add_unserved("post", path, _TAG, form=_ERRORS)
            continue
        examples = document.collect_examples(partial(list_examples, path))
        answers, body = {200: json_answer(response, examples)}, json_body(reference(request), examples)
        document.paths.add("post", path, _TAG, summary, answers, document.errors, body, form=_ERRORS)
