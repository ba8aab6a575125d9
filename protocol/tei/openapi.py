"""The calls of Text Embeddings Inference in the OpenAPI document."""

from __future__ import annotations

from http import HTTPStatus

from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import UNSERVED, ErrorForm, json_answer, json_body
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
    task = document.runner.task
    by_path = {} if task is None else EXAMPLES.get(task, {})
    for path, tasks in TASKS.items():
        if task not in tasks:
            refusals = (HTTPStatus.BAD_REQUEST, HTTPStatus.SERVICE_UNAVAILABLE)
            document.paths.add("post", path, _TAG, UNSERVED, {}, refusals, form=_ERRORS)
            continue
        request, response, summary = _OPERATIONS[path]
        examples = by_path.get(path, {})
        # The calls name no model that could be missing.
        errors = [status for status in document.errors if status is not HTTPStatus.NOT_FOUND]
        answers, body = {200: json_answer(response, examples)}, json_body(reference(request), examples)
        document.paths.add("post", path, _TAG, summary, answers, errors, body, form=_ERRORS)
