"""V1 in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from protocol.kserve_v1.cloudevents import STRUCTURED_EVENT_TYPE
from protocol.kserve_v1.examples import predict_examples
from protocol.kserve_v1.routes import PredictRequest
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import MODEL, Examples, content_of, json_answer, json_body
from protocol.openapi.schemas import (
    BOOLEAN,
    CARD,
    CARD_EXTRAS,
    CLASS,
    COUNT,
    INTEGER,
    NUMBER,
    SCORES,
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
from runners.core.task import GENERATION, Task

_TAG = "V1"


def describe(document: OpenApiDocument) -> None:
    """Add V1's operations and schemas."""
    document.add_tag(_TAG, "KServe's V1 protocol.")
    _add_schemas(document)
    paths, examples = document.paths, document.collect_examples(predict_examples)
    model = "/v1/models/{name}"
    body = json_body(reference("PredictRequest"), examples)
    body["content"][STRUCTURED_EVENT_TYPE] = content_of(reference("PredictEvent"), _events_of(examples))
    answer = json_answer("PredictResponse", examples)
    answer["content"][STRUCTURED_EVENT_TYPE] = {"schema": reference("PredictedEvent")}
    summary = "List the models, with the fields of V1 and of OpenAI's API"
    paths.add("get", "/v1/models", _TAG, summary, {200: json_answer("ModelCards")})
    paths.add("get", model, _TAG, "Check whether a model is ready", {200: json_answer("ModelStatus")}, MODEL)
    paths.add("post", f"{model}:predict", _TAG, "Predict", {200: answer}, document.errors, body)
    refusals = (*MODEL, HTTPStatus.NOT_IMPLEMENTED)
    paths.add("post", f"{model}:explain", _TAG, "Explain a prediction (not implemented)", {}, refusals)


def _add_schemas(document: OpenApiDocument) -> None:
    types = document.add_types(PredictRequest)
    predict, instance = types["PredictRequest"], types["Instance"]
    predict["properties"]["parameters"] = or_null(reference("Parameters"))
    predict["anyOf"] = [{"required": ["inputs"]}, {"required": ["instances"]}]
    no_pair = {"properties": {"text_pair": {"type": "null"}}}
    no_question = {"not": {"anyOf": [{"required": ["question"]}, {"required": ["context"]}]}}
    instance["oneOf"] = [
        {"required": ["text"], **no_question},
        {"required": ["words"], **no_question, **no_pair},
        {"required": ["question", "context"], **no_pair},
    ]
    predictions = array_of({"anyOf": _predictions([runner.task for runner in document.runners])})
    document.schemas |= {
        "ModelStatus": object_of({"name": STRING, "ready": BOOLEAN, **CARD}, CARD_EXTRAS),
        "PredictResponse": object_of({"predictions": predictions}, {"outputs": array_of(reference("OutputTensor"))}),
        "PredictEvent": _event_schema(reference("PredictRequest")),
        "PredictedEvent": _event_schema(reference("PredictResponse")),
    }


def _event_schema(data: Schema) -> Schema:
    """A CloudEvent in structured mode, with these data."""
    text = {**STRING, "minLength": 1}
    version = {**STRING, **one_of("1.0", "0.3")}
    return object_of({"specversion": version, "id": text, "source": text, "type": text, "data": data})


def _events_of(examples: Examples) -> dict[str, Any]:
    """The examples' requests as CloudEvents."""
    attributes = {"specversion": "1.0", "id": "1", "source": "https://example.com", "type": "question"}
    return {
        key: {"summary": each.summary, "value": {**attributes, "data": each.request}} for key, each in examples.items()
    }


def _predictions(tasks: Sequence[Task | None]) -> list[Schema]:
    """The forms of one text's prediction: of labels, and of the scores and records that options ask for."""
    known = [task for task in tasks if task is not None]
    schemas: list[Schema] = []
    for task in known or _PREDICTIONS:
        schemas += [schema for schema in _PREDICTIONS[task] if schema not in schemas]
    return schemas


_ENTITY = object_of({"label": STRING, "score": NUMBER, "text": STRING, "start": COUNT, "end": COUNT})
_TOKEN = object_of({"score": NUMBER, "token": INTEGER, "token_str": STRING, "sequence": STRING})
_ANSWER = object_of({"answer": STRING, "score": NUMBER, "start": COUNT, "end": COUNT})
# A class, the value of a regression, a 0 or 1 for each of several labels; by name, the best class or a list of classes.
_CLASSES = [INTEGER, NUMBER, array_of(INTEGER), SCORES, CLASS, array_of(CLASS)]
_PREDICTIONS: dict[Task, list[Schema]] = {
    # The last form has the best tokens of each mask.
    Task.FILL_MASK: [STRING, array_of(array_of(map_of({"type": ["string", "number"]}))), array_of(array_of(_TOKEN))],
    Task.SEQUENCE_CLASSIFICATION: _CLASSES,
    Task.ZERO_SHOT_CLASSIFICATION: _CLASSES,
    Task.QUESTION_ANSWERING: [_ANSWER, array_of(_ANSWER)],
    Task.TOKEN_CLASSIFICATION: [array_of(array_of(INTEGER)), array_of(SCORES), array_of(_ENTITY)],
    Task.TEXT_EMBEDDING: [array_of(NUMBER)],
    Task.SPARSE_EMBEDDING: [array_of(SPARSE_VALUE)],
    # The logit; by name, or a list of one.
    Task.TEXT_RANKING: [NUMBER, SCORES, CLASS, array_of(CLASS)],
    **{task: [STRING] for task in GENERATION},
}
