"""Elasticsearch's ranking in the OpenAPI document."""

from __future__ import annotations

from protocol.elastic.routes import ElasticRerankRequest, ranks
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.example_texts import DOCUMENTS, QUERY
from protocol.openapi.operations import Example, ExampleModel, Examples, json_answer, json_body
from protocol.openapi.schemas import COUNT, NUMBER, STRING, array_of, object_of, reference
from runners.core.probe_paths import ROOT_PATH
from runners.core.task import Task

_TAG = "Elastic"


def describe(document: OpenApiDocument) -> None:
    """Add the call, if a model answers it; its path is Hugging Face's too."""
    if not any(ranks(runner) for runner in document.runners):
        return
    document.add_tag(_TAG, "The ranking of Elasticsearch's inference service `hugging_face`.")
    document.add_types(ElasticRerankRequest)
    result = object_of({"index": COUNT, "score": NUMBER}, {"text": STRING})
    document.schemas["ElasticRerankResponse"] = array_of(result)
    examples = document.collect_examples(_list_examples)
    answers = {200: json_answer("ElasticRerankResponse", examples)}
    body = json_body(reference("ElasticRerankRequest"), examples)
    document.paths.add("post", ROOT_PATH, _TAG, "Rank texts by a query", answers, document.errors, body)


def _list_examples(model: ExampleModel) -> Examples:
    if model.task is not Task.TEXT_RANKING:
        return {}
    return {"documents": Example("Two documents", {"query": QUERY, "documents": DOCUMENTS, "top_n": 1})}
