"""The calls of Text Embeddings Inference in the OpenAPI document."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

import msgspec

from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import ErrorForm, ExampleModel, Examples, json_answer, json_body
from protocol.openapi.schemas import (
    BOOLEAN,
    CLASS,
    COUNT,
    NUMBER,
    SPARSE_VALUE,
    STRING,
    Schema,
    array_of,
    map_of,
    object_of,
    one_of,
    or_null,
    reference,
)
from protocol.tei.embed import TeiEmbedRequest, TeiEmbedTokensRequest
from protocol.tei.errors import ERROR_TYPES, error_body
from protocol.tei.examples import COMMON_EXAMPLES, EXAMPLES
from protocol.tei.predict import TeiPredictRequest
from protocol.tei.rerank import TeiRerankRequest
from protocol.tei.routes import CALLS, INFO, serves
from protocol.tei.similarity import TeiSimilarityRequest
from protocol.tei.tokenize import TeiDecodeRequest, TeiTokenizeRequest

_TAG = "TEI"
_ERRORS = ErrorForm("TEI", reference("TEIError"), error_body)
# The statuses of a call that fails, beside those of a name that is no model's.
_FAILURES = (
    HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.FAILED_DEPENDENCY, HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE,
)  # fmt: skip


def _name(path: str) -> str:
    """The name of a call in the names of schemas: TeiEmbedAll."""
    return f"Tei{path.strip('/').title().replace('_', '')}"


@dataclass(frozen=True, slots=True)
class _Operation:
    """A call in the document.

    Attributes:
        request: the type of its body.
        response: the schema of its answer.
    """

    summary: str
    request: type[msgspec.Struct]
    response: Schema


_TOKEN = object_of({"id": COUNT, "text": STRING, "special": BOOLEAN, "start": or_null(COUNT), "stop": or_null(COUNT)})
_LABELS = object_of({"id2label": map_of(STRING), "label2id": map_of(COUNT)})
# By path.
_OPERATIONS = {
    "/embed": _Operation("Embed texts", TeiEmbedRequest, array_of(array_of(NUMBER))),
    "/embed_all": _Operation("Embed the tokens of texts", TeiEmbedTokensRequest, array_of(array_of(array_of(NUMBER)))),
    "/embed_sparse": _Operation(
        "Embed texts as sparse vectors", TeiEmbedTokensRequest, array_of(array_of(SPARSE_VALUE))
    ),
    "/similarity": _Operation("Compare sentences with another one", TeiSimilarityRequest, array_of(NUMBER)),
    "/predict": _Operation(
        "Classify texts", TeiPredictRequest, {"anyOf": [array_of(CLASS), array_of(array_of(CLASS))]}
    ),
    "/rerank": _Operation(
        "Rank texts by a query",
        TeiRerankRequest,
        array_of(object_of({"index": COUNT, "score": NUMBER}, {"text": STRING})),
    ),
    "/tokenize": _Operation("Tokenize texts", TeiTokenizeRequest, array_of(array_of(_TOKEN))),
    "/decode": _Operation("Decode token ids", TeiDecodeRequest, array_of(STRING)),
}
_SCHEMAS: dict[str, Schema] = {
    "TEIError": object_of({"error": STRING, "error_type": one_of(*ERROR_TYPES)}),
    "TEIInfo": object_of(
        {
            "model_id": STRING,
            "model_sha": or_null(STRING),
            "model_dtype": STRING,
            "served_model_name": STRING,
            # Of another task, an empty object under the task's name.
            "model_type": object_of(
                {}, {"embedding": object_of({"pooling": STRING}), "classifier": _LABELS, "reranker": _LABELS}
            ),
            "max_concurrent_requests": COUNT,
            "max_input_length": COUNT,
            "max_batch_tokens": COUNT,
            "max_batch_requests": or_null(COUNT),
            "max_client_batch_size": COUNT,
            "auto_truncate": BOOLEAN,
            "tokenization_workers": COUNT,
            "version": STRING,
            "sha": or_null(STRING),
            "docker_label": or_null(STRING),
        }
    ),
    **{f"{_name(path)}Response": operation.response for path, operation in _OPERATIONS.items()},
}


def describe(document: OpenApiDocument) -> None:
    """Add the calls."""
    document.add_tag(_TAG, "The calls of Text Embeddings Inference.")
    document.add_types(*dict.fromkeys(operation.request for operation in _OPERATIONS.values()))
    document.schemas |= _SCHEMAS
    for path, call in CALLS.items():
        serving = [runner for runner in document.runners if serves(runner, call)]
        if not serving:
            # Of a path that other protocols have too, the body is read before a model is selected.
            document.add_unserved("post", path, _TAG, _FAILURES, _ERRORS)
            continue
        operation = _OPERATIONS[path]
        examples = document.collect_examples(partial(_list_examples, path))
        answers = {200: json_answer(f"{_name(path)}Response", examples)}
        body = json_body(reference(operation.request.__name__), examples)
        query = document.describe_model_query(serving)
        errors = [*_FAILURES, HTTPStatus.NOT_FOUND] if query else _FAILURES
        document.paths.add("post", path, _TAG, operation.summary, answers, errors, body, query=query, form=_ERRORS)
    query = document.describe_model_query(document.runners)
    document.paths.add(
        "get",
        INFO,
        _TAG,
        "What a model is, and the limits of its requests",
        {200: json_answer("TEIInfo")},
        [HTTPStatus.SERVICE_UNAVAILABLE, *([HTTPStatus.NOT_FOUND, HTTPStatus.UNPROCESSABLE_ENTITY] if query else [])],
        query=query,
        form=_ERRORS,
    )


def _list_examples(path: str, model: ExampleModel) -> Examples:
    if model.task is None:
        return {}
    return EXAMPLES.get(model.task, {}).get(path) or COMMON_EXAMPLES.get(path, {})
