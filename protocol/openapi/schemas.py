"""Building blocks of JSON schemas, and the schemas and errors that several protocols share."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}


def array_of(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def map_of(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def one_of(*values: Any) -> Schema:
    return {"enum": [*values]}


def or_null(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def object_of(required: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    return {"type": "object", "properties": {**required, **(optional or {})}, "required": [*required]}


def to_sentence(description: str) -> str:
    """The description of an argument, which `--help` prints without a capital and a full stop, as a sentence."""
    return f"{description[0].upper()}{description[1:]}."


def event_of(*data: Schema) -> Schema:
    """An event of a stream, whose data is JSON of one of these schemas."""
    return object_of({"data": {**STRING, "contentMediaType": "application/json", "contentSchema": {"anyOf": [*data]}}})


# Numbers by name, such as a score for each class.
SCORES = map_of(NUMBER)
# A class by name.
CLASS = object_of({"label": STRING, "score": NUMBER})
# The weight of an entry of the vocabulary.
SPARSE_VALUE = object_of({"index": COUNT, "value": NUMBER})
# A generated token, and why an output ended, as Text Generation Inference and the Open Inference Protocol say it.
GENERATED_TOKEN = object_of({"id": COUNT, "text": STRING, "logprob": NUMBER, "special": BOOLEAN})
FINISH_REASON = one_of("length", "eos_token", "stop_sequence")
# A model as OpenAI's API describes it, and what vLLM adds.
CARD = {"id": STRING, "object": one_of("model"), "created": INTEGER, "owned_by": STRING}
CARD_EXTRAS = {
    "root": or_null(STRING), "parent": or_null(STRING), "max_model_len": or_null(COUNT), "task": or_null(STRING),
    "capabilities": array_of(STRING),
}  # fmt: skip

COMMON_SCHEMAS: dict[str, Schema] = {
    "Error": object_of({"error": STRING}),
    "Alive": object_of({"status": one_of("alive")}),
    "Live": object_of({"live": BOOLEAN}),
    "Ready": object_of({"ready": BOOLEAN}),
    "Version": object_of({"version": STRING}),
    "Load": object_of({"server_load": COUNT}),
    "ServerMetadata": object_of({"name": STRING, "version": STRING, "extensions": array_of(STRING)}),
    "ModelCard": object_of(CARD, CARD_EXTRAS),
    "ModelCards": object_of(
        {"object": one_of("list"), "data": array_of(reference("ModelCard")), "models": array_of(STRING)}
    ),
}

# By status: when it is the answer, and an example of its message.
ERRORS: dict[HTTPStatus, tuple[str, str]] = {
    HTTPStatus.BAD_REQUEST: (
        "The request is invalid, or the model does not support it.", "the body is empty; it must be a JSON object",
    ),
    HTTPStatus.UNAUTHORIZED: (
        "The request has no valid key.", "this server asks for a key: send it as Authorization: Bearer KEY",
    ),
    HTTPStatus.FORBIDDEN: (
        "The operator does not allow this request, or allows it only with an admin's key.",
        "loading and unloading need an admin's key, which this one is not",
    ),
    HTTPStatus.NOT_FOUND: ("The model or its version does not exist.", "Model with name nope does not exist."),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "The path does not allow this method.", "DELETE is not allowed on /v2/models; allowed: GET, HEAD",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        "The request exceeds a limit of the server.",
        "the body has more than 33554432 bytes, which are allowed at most",
    ),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
        "The server does not read bodies of this content type.",
        "the content type text/xml is not supported; send application/json",
    ),
    HTTPStatus.UNPROCESSABLE_ENTITY: (
        "The request is invalid, or a text is too long and must not be truncated.",
        "text 0 cannot be served: it has 900 tokens, the model takes 512, and truncation is false",
    ),
    HTTPStatus.FAILED_DEPENDENCY: (
        "The model does not answer this call, or has failed.",
        "bert does not serve /embed: it serves fill_mask at /v1/models/bert:predict, /v2/models/bert/infer",
    ),
    HTTPStatus.TOO_MANY_REQUESTS: (
        "The model has too many requests under way; try again later.",
        "the model is busy with 512 requests, which is the most it takes (max_concurrent_requests); try again later",
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: (
        "The server has an internal error, the model cannot be loaded, or its scores are NaN or infinite.",
        "internal server error",
    ),
    HTTPStatus.NOT_IMPLEMENTED: (
        "The server does not implement this call of the protocol.", "this server has no explainer; it offers :predict",
    ),
    HTTPStatus.BAD_GATEWAY: (
        "The predictor failed, or its answer does not follow its protocol.", "the predictor's answer cannot be read",
    ),
    HTTPStatus.GATEWAY_TIMEOUT: ("The predictor did not answer in time.", "the predictor was too slow"),
    HTTPStatus.SERVICE_UNAVAILABLE: (
        "The model is not ready, or the server has no memory for the body.", "Model with name model is not ready.",
    ),
}  # fmt: skip
ERROR_HEADERS: dict[HTTPStatus, tuple[str, Schema]] = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate", one_of("Bearer")),
    HTTPStatus.METHOD_NOT_ALLOWED: ("Allow", STRING),
    HTTPStatus.TOO_MANY_REQUESTS: (
        "Retry-After",
        {"type": "integer", "minimum": 1, "description": "The number of seconds to wait."},
    ),
}
