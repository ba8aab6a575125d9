"""The Hugging Face inference protocol in the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from protocol.huggingface.answers import ENCODER_FORMS
from protocol.huggingface.errors import error_body
from protocol.huggingface.examples import hub_examples
from protocol.huggingface.generation import GENERATION_FORMS
from protocol.huggingface.parameters import CLIENT_OPTIONS
from protocol.huggingface.routes import PATHS
from protocol.huggingface.tasks import HubTask, serves_task
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import EVENTS, UNSERVED, ErrorForm, json_answer, json_body
from protocol.openapi.schemas import (
    CLASS,
    COUNT,
    FINISH_REASON,
    GENERATED_TOKEN,
    NUMBER,
    STRING,
    Schema,
    array_of,
    event_of,
    object_of,
    one_of,
    or_null,
    reference,
)

_TAG = "Hugging Face"
_ERRORS = ErrorForm("Hub", reference("HubError"), error_body)
_CLASSES = array_of(CLASS)
_ENTITIES = array_of(
    object_of(
        {"score": NUMBER, "word": STRING, "start": COUNT, "end": COUNT}, {"entity": STRING, "entity_group": STRING}
    )
)
_TOKENS = array_of(object_of({"score": NUMBER, "token": COUNT, "token_str": STRING, "sequence": STRING}))
_ANSWER = object_of({"answer": STRING, "score": NUMBER, "start": COUNT, "end": COUNT})
_PROMPT_TOKEN = {"id": COUNT, "text": STRING, "logprob": or_null(NUMBER)}
_OUTPUT = {
    "finish_reason": FINISH_REASON, "generated_tokens": COUNT, "seed": or_null(COUNT),
    "prefill": array_of(object_of(_PROMPT_TOKEN)), "tokens": array_of(GENERATED_TOKEN),
}  # fmt: skip
_TOPS = {"top_tokens": array_of(array_of(GENERATED_TOKEN))}
_OTHERS = array_of(object_of({"generated_text": STRING, **_OUTPUT}, _TOPS))
_DETAILS = {"details": object_of(_OUTPUT, {**_TOPS, "best_of_sequences": _OTHERS})}
_TEXTS, _SUMMARIES, _TRANSLATIONS = (
    array_of(object_of({name: STRING}, _DETAILS)) for name in ("generated_text", "summary_text", "translation_text")
)
_END = object_of(
    {"finish_reason": FINISH_REASON, "generated_tokens": COUNT, "seed": or_null(COUNT), "input_length": COUNT}
)
_EVENT = object_of(
    {"index": COUNT, "token": GENERATED_TOKEN, "generated_text": or_null(STRING), "details": or_null(_END)},
    {"top_tokens": array_of(GENERATED_TOKEN)},
)
# By task, the forms of the answer to one input, and, where that is not a list of it, to several.
_ANSWERS: dict[HubTask, list[Schema]] = {
    HubTask.FEATURE_EXTRACTION: [array_of(array_of(NUMBER))],
    HubTask.FILL_MASK: [_TOKENS, array_of(_TOKENS), array_of(array_of(_TOKENS))],
    HubTask.QUESTION_ANSWERING: [_ANSWER, array_of(_ANSWER), array_of(array_of(_ANSWER))],
    HubTask.SENTENCE_SIMILARITY: [array_of(NUMBER)],
    HubTask.SUMMARIZATION: [_SUMMARIES],
    HubTask.TEXT2TEXT_GENERATION: [_TEXTS],
    HubTask.TEXT_CLASSIFICATION: [array_of(_CLASSES)],
    HubTask.TEXT_GENERATION: [_TEXTS, array_of(_TEXTS)],
    HubTask.TOKEN_CLASSIFICATION: [_ENTITIES, array_of(_ENTITIES)],
    HubTask.TRANSLATION: [_TRANSLATIONS],
    HubTask.ZERO_SHOT_CLASSIFICATION: [_CLASSES, array_of(_CLASSES)],
}
_LABELS = object_of({"sequence": STRING, "labels": array_of(STRING), "scores": array_of(NUMBER)})
# Where pipelines answer in other forms.
_PIPELINE_ANSWERS: dict[HubTask, list[Schema]] = {
    HubTask.TEXT_CLASSIFICATION: [_CLASSES, array_of(_CLASSES)],
    HubTask.ZERO_SHOT_CLASSIFICATION: [_LABELS, array_of(_LABELS)],
}
_ERROR_TYPES = one_of("generation", "healthcheck", "overloaded", "validation")


def describe(document: OpenApiDocument) -> None:
    """Add the operation at the root, which calls the only model, and those at the paths of models and tasks."""
    document.add_tag(_TAG, "The calls of Hugging Face's inference service and endpoints. Unknown fields are refused.")
    document.schemas["HubError"] = object_of({"error": STRING, "error_type": _ERROR_TYPES})
    document.paths.describe_parameter("task", {**STRING, **one_of(*map(str, _find_tasks(document) or HubTask))})
    for path in ("/", *(path.replace(":path}", "}") for path in PATHS)):
        _add_call(document, path, _TAG, "HubResponse", _ANSWERS)


def add_pipelines(document: OpenApiDocument, path: str, tag: str) -> None:
    """Add the operation of a path whose answers have the forms of pipelines."""
    _add_call(document, path, tag, "PipelineResponse", {**_ANSWERS, **_PIPELINE_ANSWERS})


def _add_call(
    document: OpenApiDocument, path: str, tag: str, response: str, answers: Mapping[HubTask, list[Schema]]
) -> None:
    """Add the operation of a path.

    Args:
        response: the name of the answer's schema.
        answers: the forms of the answer.
    """
    tasks = _find_tasks(document)
    if not tasks:
        document.add_unserved("post", path, tag, (*UNSERVED, HTTPStatus.NOT_FOUND), _ERRORS)
        return
    document.schemas["HubRequest"] = {"anyOf": [_describe_body(document, task) for task in tasks]}
    document.schemas[response] = {"anyOf": [schema for task in tasks for schema in answers[task]]}
    names_task = "{task}" in path
    examples = {} if names_task else document.collect_examples(hub_examples)
    if "{name}" not in path and document.has_several:
        # An example does not name its model here.
        examples = {}
    answer, body = json_answer(response, examples), json_body(reference("HubRequest"), examples)
    if any(task in GENERATION_FORMS for task in tasks):
        answer["content"][EVENTS] = {"schema": event_of(_EVENT, reference("HubError"))}
    summary = "Call a model for a task" if names_task else "Call a model"
    query = {"model": STRING} if "{name}" not in path else None
    document.paths.add("post", path, tag, summary, {200: answer}, document.errors, body, query=query, form=_ERRORS)


def _find_tasks(document: OpenApiDocument) -> list[HubTask]:
    """The tasks that some model serves."""
    return [task for task in HubTask if any(serves_task(runner, task) for runner in document.runners)]


def _describe_body(document: OpenApiDocument, task: HubTask) -> Schema:
    call = GENERATION_FORMS.get(task) or ENCODER_FORMS[task]
    schema = document.add_types(call.request)[call.request.__name__]
    schema["properties"]["options"] = or_null(object_of({}, {name: {} for name in sorted(CLIENT_OPTIONS)}))
    if task is HubTask.FEATURE_EXTRACTION:
        schema["properties"] |= document.schemas[call.parameters.__name__]["properties"]
    return reference(call.request.__name__)
