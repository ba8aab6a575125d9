"""The Open Inference Protocol and its extensions in the OpenAPI document."""

from __future__ import annotations

from functools import partial
from http import HTTPStatus

from protocol.open_inference.examples import binary_examples, generate_examples, infer_examples
from protocol.open_inference.repository import IndexRequest
from protocol.open_inference.rest import BINARY_HEADER, InferRequest
from protocol.openapi.document import OpenApiDocument
from protocol.openapi.operations import (
    BINARY,
    BODY,
    CALL,
    EVENTS,
    MODEL,
    content_of,
    json_answer,
    json_body,
    requests_of,
)
from protocol.openapi.schemas import (
    BOOLEAN,
    COUNT,
    FINISH_REASON,
    GENERATED_TOKEN,
    STRING,
    Schema,
    array_of,
    event_of,
    map_of,
    object_of,
    one_of,
    or_null,
    reference,
)
from protocol.tensors import DATATYPES
from runners.core.served_model import ModelState

_TAG, _REPOSITORY = "Open Inference Protocol", "Repository"


def describe(document: OpenApiDocument) -> None:
    """Add the protocol's operations and schemas, and those of its extensions."""
    document.add_tag(
        _TAG, "Version 2 of KServe's protocol, with the extensions for binary tensors, classification and generation."
    )
    document.add_tag(_REPOSITORY, "Triton's model repository extension.")
    _add_schemas(document)
    document.paths.add("get", "/v2/models", _TAG, "List the names of the models", {200: json_answer("ModelNames")})
    for version in ("", "/versions/{version}"):
        _add_model(document, f"/v2/models/{{name}}{version}")
    for repository in ("", "/{repository}"):
        _add_repository(document, f"/v2/repository{repository}")


def _add_model(document: OpenApiDocument, model: str) -> None:
    paths, texts = document.paths, document.collect_examples(infer_examples)
    body = json_body(reference("InferRequest"), texts)
    binary = {"type": "string", "format": "binary"}
    body["content"][BINARY] = content_of(binary, requests_of(document.collect_examples(binary_examples)))
    answer = json_answer("InferResponse", texts)
    answer["content"][BINARY] = {"schema": binary}
    answer["headers"] = {
        BINARY_HEADER: {
            "description": "The length in bytes of the JSON that precedes the binary tensors.",
            "schema": COUNT,
        }
    }
    metadata = {200: json_answer("ModelMetadata")}
    paths.add("get", model, _TAG, "Get the inputs and outputs of a model", metadata, MODEL)
    ready = {200: json_answer("ModelReady")}
    paths.add("get", f"{model}/ready", _TAG, "Check whether a model is ready", ready, MODEL)
    header = {BINARY_HEADER: COUNT}
    paths.add("post", f"{model}/infer", _TAG, "Infer", {200: answer}, document.errors, body, header)
    _add_generate(document, model)


def _add_generate(document: OpenApiDocument, model: str) -> None:
    generators = [runner.generator for runner in document.runners if runner.generator is not None]
    event = event_of(reference("GenerateEvent"), reference("Error"))
    stream = {"description": "A stream of server-sent events.", "content": {EVENTS: {"schema": event}}}
    examples = document.collect_examples(generate_examples)
    streamed = document.collect_examples(partial(generate_examples, is_stream=True))
    for verb, summary, answer, requests in (
        ("generate", "Continue a text", json_answer("GenerateResponse", examples), examples),
        ("generate_stream", "Continue a text, as a stream", stream, streamed),
    ):
        path = f"{model}/{verb}"
        if any(generator.generates for generator in generators):
            body = json_body(reference("GenerateRequest"), requests)
            document.paths.add("post", path, _TAG, summary, {200: answer}, CALL, body)
        else:
            document.add_unserved("post", path, _TAG, (*MODEL, HTTPStatus.BAD_REQUEST))


def _add_repository(document: OpenApiDocument, base: str) -> None:
    index, body = {200: json_answer("RepositoryIndex")}, json_body(reference("IndexRequest"), required=False)
    document.paths.add("post", f"{base}/index", _REPOSITORY, "List the models and their states", index, BODY, body)
    failures = (HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.NOT_IMPLEMENTED)
    for verb, summary in (("load", "Load a model"), ("unload", "Unload a model")):
        answers = {200: json_answer(f"{verb.title()}ed")}
        path = f"{base}/models/{{name}}/{verb}"
        document.paths.add("post", path, _REPOSITORY, summary, answers, failures, is_change=True)


def _add_schemas(document: OpenApiDocument) -> None:
    infer = document.add_types(InferRequest, IndexRequest)["InferRequest"]
    binary = {"type": "object", "properties": {"binary_data_output": BOOLEAN}}
    infer["properties"]["parameters"] = or_null({"allOf": [reference("Parameters"), binary]})
    sampling = document.schemas["SamplingParameters"]
    details = {"details": {"type": ["boolean", "null"], "description": _DETAILS}}
    generate = {
        "text_input": STRING,
        "id": {"description": "The answer repeats this if it is a string."},
        "parameters": or_null(reference("GenerateParameters")),
        **sampling["properties"],
        **details,
    }
    document.schemas |= _SCHEMAS
    document.schemas["GenerateParameters"] = {**sampling, "properties": {**sampling["properties"], **details}}
    document.schemas["GenerateRequest"] = {
        "description": "The body of `generate`. Parameters may also be fields of the body; those in `parameters` win.",
        "type": "object", "properties": generate, "required": ["text_input"], "additionalProperties": False,
    }  # fmt: skip


_DETAILS = (
    "The answer says why the output ended, and has the log probabilities of its tokens; of a stream, its last event."
)
_FINISH = {"finish_reason": FINISH_REASON, "logprobs": array_of(GENERATED_TOKEN)}
_DATATYPE = one_of(*DATATYPES)
_TENSOR = {"name": STRING, "shape": array_of(COUNT), "datatype": _DATATYPE}
_SPEC = object_of({"name": STRING, "datatype": _DATATYPE, "shape": array_of({"type": "integer", "minimum": -1})})
_NAMED = {"model_name": STRING, "model_version": STRING}
_CONTINUATION = {**_NAMED, "text_output": STRING}
_DATA = {
    "description": "The elements. A binary tensor does not have this field.",
    **array_of({"type": ["number", "string"]}),
}
_SCHEMAS: dict[str, Schema] = {
    "ModelNames": object_of({"models": array_of(STRING)}),
    "ModelReady": object_of({"name": STRING, "ready": BOOLEAN}),
    "ModelMetadata": object_of(
        {
            "name": STRING, "versions": array_of(STRING), "platform": STRING, "inputs": array_of(_SPEC),
            "outputs": array_of(_SPEC), "properties": map_of(STRING),
        }
    ),
    "OutputTensor": object_of(_TENSOR, {"data": _DATA, "parameters": object_of({"binary_data_size": COUNT})}),
    "InferResponse": object_of({**_NAMED, "id": STRING, "outputs": array_of(reference("OutputTensor"))}),
    "GenerateResponse": object_of(_CONTINUATION, {"id": STRING, "details": object_of(_FINISH)}),
    "GenerateEvent": object_of(
        {**_CONTINUATION, "done": BOOLEAN}, {"id": STRING, "details": object_of({**_FINISH, "token": GENERATED_TOKEN})}
    ),
    "RepositoryIndex": array_of(
        object_of({"name": STRING, "version": STRING, "state": one_of(*map(str, ModelState)), "reason": STRING})
    ),
    "Loaded": object_of({"name": STRING, "load": one_of(True)}),
    "Unloaded": object_of({"name": STRING, "unload": one_of(True)}),
}  # fmt: skip
