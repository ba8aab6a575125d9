"""The calls of Text Embeddings Inference in the OpenAPI document."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import ErrorForm, ExampleModel, Examples, json_answer, json_body
from protocol.openapi.schemas import CLASS, COUNT, NUMBER, STRING, Schema, array_of, object_of, one_of, reference
from protocol.tei.errors import error_body
from protocol.tei.examples import EXAMPLES
from protocol.tei.routes import TASKS, TeiEmbedRequest, TeiPredictRequest, TeiRerankRequest

_TAG = "TEI"
_ERRORS = ErrorForm("TEI", reference("TEIError"), error_body)
# By path: the schemas of the request and the answer, and the summary.
_OPERATIONS = {
    "/embed": ("TeiEmbedRequest", "TeiEmbedResponse", "Embed texts"),
    "/predict": ("TeiPredictRequest", "TeiPredictResponse", "Classify texts"),
    "/rerank": ("TeiRerankRequest", "TeiRerankResponse", "Rank texts by a query"),
}
_SCHEMAS: dict[str, Schema] = {
    "TEIError": object_of(
        {"error": STRING, "error_type": one_of("Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer")}
    ),
    "TeiEmbedResponse": array_of(array_of(NUMBER)),
    "TeiPredictResponse": {"anyOf": [array_of(CLASS), array_of(array_of(CLASS))]},
    "TeiRerankResponse": array_of(object_of({"index": COUNT, "score": NUMBER}, {"text": STRING})),
}


def describe(document: OpenApiDocument) -> None:
    """Add the three calls."""
    document.add_tag(_TAG, "The calls of Text Embeddings Inference.")
    document.add_types(TeiEmbedRequest, TeiPredictRequest, TeiRerankRequest)
    document.schemas |= _SCHEMAS
    for path, tasks in TASKS.items():
        serving = [runner for runner in document.runners if runner.task in tasks]
        if not serving:
            refusals = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
            document.paths.add("post", path, _TAG, document.unserved, {}, refusals, form=_ERRORS)
            continue
        request, response, summary = _OPERATIONS[path]
        examples = document.collect_examples(partial(_list_examples, path))
        errors, query = [*document.errors], None
        if document.has_several:
            query = {"model": {**STRING, **one_of(*(name for runner in serving for name in runner.names))}}
        else:
            # The calls need not name the only model.
            errors.remove(HTTPStatus.NOT_FOUND)
        answers, body = {200: json_answer(response, examples)}, json_body(reference(request), examples)
        document.paths.add("post", path, _TAG, summary, answers, errors, body, query=query, form=_ERRORS)


def _list_examples(path: str, model: ExampleModel) -> Examples:
    return {} if model.task is None else EXAMPLES.get(model.task, {}).get(path, {})
