"""BentoML's methods in the OpenAPI document."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import TypeAdapter

from protocol.bentoml_api.arguments import describe_body
from protocol.bentoml_api.examples import method_examples
from protocol.bentoml_api.methods import METHODS, Method
from protocol.bentoml_api.outputs import Vectors
from protocol.bentoml_api.served_methods import serves_method
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import Example, ExampleModel, Examples, json_answer, json_body, text_answer
from protocol.openapi.schemas import NUMBER, Schema, array_of, one_of

_TAG = "BentoML"
_REFERENCE = "#/components/schemas/{model}"


def describe(document: OpenApiDocument) -> None:
    """Add the methods."""
    document.add_tag(_TAG, "BentoML's methods, for its clients and pages, and paths that BentoML answers.")
    for method in METHODS.values():
        _describe_method(document, method)


def _describe_method(document: OpenApiDocument, method: Method) -> None:
    serving = [runner for runner in document.runners if serves_method(runner, method)]
    if not serving:
        document.add_unserved("post", method.path, _TAG)
        return
    names = [name for runner in serving for name in runner.names]

    def list_examples(model: ExampleModel) -> Examples:
        if model.name not in names:
            return {}
        examples = method_examples(method.name, model)
        return {key: name_model(each, model) for key, each in examples.items()} if document.has_several else examples

    def name_model(example: Example, model: ExampleModel) -> Example:
        return replace(example, request={"model": model.name, **example.request})

    examples = document.collect_examples(list_examples)
    body = describe_body(method.arguments)
    body["properties"]["model"] = {**body["properties"]["model"], **one_of(*names, None)}
    summary = method.description.partition(". ")[0]
    if method.is_stream:
        answer = text_answer()
    else:
        name = f"{method.name.title().replace('_', '')}Answers"
        document.schemas[name] = _describe_output(document, method.output)
        answer = json_answer(name, examples)
    document.paths.add("post", method.path, _TAG, summary, {200: answer}, document.errors, json_body(body, examples))


def _describe_output(document: OpenApiDocument, output: Any) -> Schema:
    """The schema of an answer; those that it refers to are added to the document."""
    if output is Vectors:
        return array_of(array_of(NUMBER))
    schema = TypeAdapter(output).json_schema(ref_template=_REFERENCE)
    document.schemas |= schema.pop("$defs")
    return schema
