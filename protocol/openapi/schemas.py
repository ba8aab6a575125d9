"""Schemas of what this server answers, for the OpenAPI document; the types that parse requests have their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from protocol.open_inference.tensors import DATATYPES
from runners.core.generation import FinishReason
from runners.core.models import ModelState
from runners.core.task import GENERATION, Task

Schema = dict[str, Any]

STRING: Schema = {"type": "string"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
FINISH_REASONS: Sequence[str] = FinishReason.__args__  # type: ignore[attr-defined]


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


def event_of(*data: Schema) -> Schema:
    """An event of a stream, whose data is JSON of one of these schemas."""
    return object_of({"data": {**STRING, "contentMediaType": "application/json", "contentSchema": {"anyOf": [*data]}}})


def event_schema(data: Schema) -> Schema:
    """A CloudEvent in structured mode, with these data."""
    text = {**STRING, "minLength": 1}
    version = {**STRING, **one_of("1.0", "0.3")}
    return object_of({"specversion": version, "id": text, "source": text, "type": text, "data": data})


def answer_schemas(task: Task | None) -> dict[str, Schema]:
    """The schemas by name.

    Args:
        task: what the model does; None if that is not known.
    """
    return {
        **_COMMON,
        "PredictedEvent": event_schema(reference("PredictResponse")),
        "PredictResponse": object_of(
            {"predictions": array_of({"anyOf": _predictions(task)})}, {"outputs": array_of(reference("OutputTensor"))}
        ),
    }


def _predictions(task: Task | None) -> list[Schema]:
    """What stands for one text in an answer of V1: labels, or what `return_probabilities` and its like make of them."""
    if task is None:
        return [schema for schemas in _PREDICTIONS.values() for schema in schemas]
    return _PREDICTIONS[task]


_SCORES = map_of(NUMBER)
_CLASS = object_of({"label": STRING, "score": NUMBER})
_ENTITY = object_of({"label": STRING, "score": NUMBER, "text": STRING, "start": COUNT, "end": COUNT})
_TOKEN = object_of({"score": NUMBER, "token": INTEGER, "token_str": STRING, "sequence": STRING})
_ANSWER = object_of({"answer": STRING, "score": NUMBER, "start": COUNT, "end": COUNT})
# A class, the value of a regression, a 0 or 1 for every one of several labels; by name, the best or a list of them.
_CLASSES = [INTEGER, NUMBER, array_of(INTEGER), _SCORES, _CLASS, array_of(_CLASS)]
_GENERATED = [STRING]
_PREDICTIONS: dict[Task, list[Schema]] = {
    # The last one is every mask's best tokens.
    Task.FILL_MASK: [STRING, array_of(array_of(map_of({"type": ["string", "number"]}))), array_of(array_of(_TOKEN))],
    Task.SEQUENCE_CLASSIFICATION: _CLASSES,
    Task.ZERO_SHOT_CLASSIFICATION: _CLASSES,
    Task.QUESTION_ANSWERING: [_ANSWER, array_of(_ANSWER)],
    Task.TOKEN_CLASSIFICATION: [array_of(array_of(INTEGER)), array_of(_SCORES), array_of(_ENTITY)],
    Task.TEXT_EMBEDDING: [array_of(NUMBER)],
    # The value; by name, or a list of one.
    Task.TEXT_RANKING: [NUMBER, _SCORES, _CLASS, array_of(_CLASS)],
    **dict.fromkeys(GENERATION, _GENERATED),
}

_TENSOR = {"name": STRING, "shape": array_of(COUNT), "datatype": one_of(*DATATYPES)}
_SPEC = object_of(
    {"name": STRING, "datatype": one_of(*DATATYPES), "shape": array_of({"type": "integer", "minimum": -1})}
)
_CARD = {"id": STRING, "object": one_of("model"), "created": INTEGER, "owned_by": STRING}
_OF_CARD = {"root": or_null(STRING), "parent": or_null(STRING), "max_model_len": or_null(COUNT)}
_OF_MODEL = {"model_name": STRING, "model_version": STRING}
_CONTINUATION = {**_OF_MODEL, "text_output": STRING}
_READ = object_of(dict.fromkeys(("prompt_tokens", "total_tokens"), COUNT))
_USAGE = object_of(dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT))
_HEAD = {"id": STRING, "created": INTEGER, "model": STRING}
_FINISH = one_of(*FINISH_REASONS, "tool_calls", None)
_CHAT_LOGPROB = {"token": STRING, "logprob": NUMBER, "bytes": or_null(array_of(COUNT))}
_CHAT_LOGPROBS = object_of(
    {
        "content": array_of(object_of({**_CHAT_LOGPROB, "top_logprobs": array_of(object_of(_CHAT_LOGPROB))})),
        "refusal": {"type": "null"},
    }
)
_PROMPT_LOGPROBS = or_null(
    array_of(or_null(map_of(object_of({"logprob": NUMBER, "rank": COUNT, "decoded_token": STRING}))))
)
_IDS = or_null(array_of(COUNT))
_TOOL_CALL = object_of(
    {"id": STRING, "type": one_of("function"), "function": object_of({"name": STRING, "arguments": STRING})}
)
# What an answer has beside OpenAI's fields, as vLLM's does.
_OF_CHOICE = {"stop_reason": or_null({"type": ["string", "integer"]}), "token_ids": _IDS}
_OF_PROMPT = {"prompt_logprobs": _PROMPT_LOGPROBS, "prompt_token_ids": _IDS}
_OUTPUT_TEXT = object_of(
    {
        "type": one_of("output_text"), "text": STRING, "annotations": array_of({}),
        "logprobs": array_of(object_of(_CHAT_LOGPROB)),
    }
)  # fmt: skip
_OUTPUT_MESSAGE = object_of(
    {
        "id": STRING, "type": one_of("message"), "role": one_of("assistant"), "status": STRING,
        "content": array_of(_OUTPUT_TEXT),
    }
)  # fmt: skip


def _openai_answer(
    kind: str, choice: Mapping[str, Schema], of_choice: Mapping[str, Schema], extras: Mapping[str, Schema]
) -> Schema:
    choices = array_of(object_of({"index": COUNT, **choice, "finish_reason": _FINISH}, of_choice))
    unknown: dict[str, Schema] = {"service_tier": {"type": "null"}, "system_fingerprint": {"type": "null"}}
    head = {**_HEAD, "object": one_of(kind), "choices": choices, "usage": reference("Usage")}
    return object_of(head, {**unknown, **extras})


_COMMON: dict[str, Schema] = {
    "Error": object_of({"error": STRING}),
    "OpenAIError": object_of(
        {"error": object_of({"message": STRING, "type": STRING, "code": or_null(STRING), "param": or_null(STRING)})}
    ),
    "TEIError": object_of(
        {"error": STRING, "error_type": one_of("Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer")}
    ),
    "Alive": object_of({"status": one_of("alive")}),
    "Live": object_of({"live": BOOLEAN}),
    "Ready": object_of({"ready": BOOLEAN}),
    "ServerMetadata": object_of({"name": STRING, "version": STRING, "extensions": array_of(STRING)}),
    "ModelNames": object_of({"models": array_of(STRING)}),
    "ModelReady": object_of({"name": STRING, "ready": BOOLEAN}),
    "ModelStatus": object_of({"name": STRING, "ready": BOOLEAN, **_CARD}, _OF_CARD),
    "ModelMetadata": object_of(
        {
            "name": STRING, "versions": array_of(STRING), "platform": STRING, "inputs": array_of(_SPEC),
            "outputs": array_of(_SPEC), "properties": map_of(STRING),
        }
    ),
    "OutputTensor": object_of(
        _TENSOR,
        {
            "data": {"description": "left out where the tensor is binary", **array_of({"type": ["number", "string"]})},
            "parameters": object_of({"binary_data_size": COUNT}),
        },
    ),
    "InferResponse": object_of({**_OF_MODEL, "id": STRING, "outputs": array_of(reference("OutputTensor"))}),
    "GenerateResponse": object_of(_CONTINUATION, {"id": STRING}),
    "GenerateEvent": object_of({**_CONTINUATION, "done": BOOLEAN}, {"id": STRING}),
    "RepositoryIndex": array_of(
        object_of({"name": STRING, "version": STRING, "state": one_of(*map(str, ModelState)), "reason": STRING})
    ),
    "Loaded": object_of({"name": STRING, "load": one_of(True)}),
    "Unloaded": object_of({"name": STRING, "unload": one_of(True)}),
    "ModelCard": object_of(_CARD, _OF_CARD),
    "ModelCards": object_of(
        {"object": one_of("list"), "data": array_of(reference("ModelCard")), "models": array_of(STRING)}
    ),
    "Usage": _USAGE,
    "EmbeddingResponse": object_of(
        {
            "object": one_of("list"),
            "data": array_of(
                object_of(
                    {
                        "object": one_of("embedding"), "index": COUNT,
                        "embedding": {"anyOf": [array_of(NUMBER), {**STRING, "contentEncoding": "base64"}]},
                    }
                )
            ),
            "model": STRING,
            "usage": _READ,
        }
    ),
    "RerankResponse": object_of(
        {
            "id": STRING, "model": STRING, "usage": _READ,
            "results": array_of(
                object_of({"index": COUNT, "relevance_score": NUMBER}, {"document": object_of({"text": STRING})})
            ),
        }
    ),
    "ScoreResponse": object_of(
        {
            "id": STRING, "object": one_of("list"), "created": INTEGER, "model": STRING,
            "data": array_of(object_of({"index": COUNT, "object": one_of("score"), "score": NUMBER})), "usage": _READ,
        }
    ),
    "TeiEmbedResponse": array_of(array_of(NUMBER)),
    "TeiPredictResponse": {"anyOf": [array_of(_CLASS), array_of(array_of(_CLASS))]},
    "TeiRerankResponse": array_of(object_of({"index": COUNT, "score": NUMBER}, {"text": STRING})),
    "CompletionResponse": _openai_answer(
        "text_completion",
        {
            "text": STRING,
            "logprobs": or_null(
                object_of(
                    {
                        "tokens": array_of(STRING), "token_logprobs": array_of({"type": ["number", "null"]}),
                        "top_logprobs": array_of(or_null(_SCORES)), "text_offset": array_of(COUNT),
                    }
                )
            ),
        },
        _OF_CHOICE | _OF_PROMPT,
        {},
    ),
    "ChatResponse": _openai_answer(
        "chat.completion",
        {
            "message": object_of(
                {"role": STRING, "content": or_null(STRING), "refusal": {"type": "null"}},
                {"tool_calls": array_of(_TOOL_CALL)},
            ),
            "logprobs": or_null(_CHAT_LOGPROBS),
        },
        _OF_CHOICE,
        _OF_PROMPT,
    ),
    "ResponsesResponse": object_of(
        {
            "id": STRING, "object": one_of("response"), "created_at": INTEGER, "model": STRING,
            "status": one_of("completed", "incomplete", "in_progress"), "output": array_of(_OUTPUT_MESSAGE),
            "parallel_tool_calls": BOOLEAN, "tool_choice": STRING, "tools": array_of({}),
            "usage": or_null(object_of(dict.fromkeys(("input_tokens", "output_tokens", "total_tokens"), COUNT))),
        }
    ),
    "TokenizeResponse": object_of(
        {
            "count": COUNT, "max_model_len": COUNT, "tokens": array_of(COUNT),
            "token_strs": or_null(array_of(STRING)),
        }
    ),
    "DetokenizeResponse": object_of({"prompt": STRING}),
}  # fmt: skip

# What a status means, and an example of its message.
ERRORS: dict[HTTPStatus, tuple[str, str]] = {
    HTTPStatus.BAD_REQUEST: (
        "The request is not what the protocol or the model takes", "the body is empty; it must be a JSON object",
    ),
    HTTPStatus.UNAUTHORIZED: (
        "The request carries none of the keys", "this server asks for a key: send it as Authorization: Bearer KEY",
    ),
    HTTPStatus.FORBIDDEN: (
        "It is not allowed, or not with this key",
        "loading and unloading need an admin's key, which this one is not",
    ),
    HTTPStatus.NOT_FOUND: ("There is no such model or version", "Model with name nope does not exist."),
    HTTPStatus.METHOD_NOT_ALLOWED: (
        "The path is for other methods", "DELETE is not allowed on /v2/models; allowed: GET, HEAD",
    ),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: (
        "The body is too large", "the body has more than 33554432 bytes, which are allowed at most",
    ),
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: (
        "The body is of a type that is not read here",
        "the content type text/xml is not supported; send application/json",
    ),
    HTTPStatus.TOO_MANY_REQUESTS: (
        "Too many requests are under way",
        "the server is busy with 512 requests, which is the most it takes (max_concurrent_requests); try again later",
    ),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("The server failed", "internal server error"),
    HTTPStatus.NOT_IMPLEMENTED: (
        "The protocol has this, this server does not", "this server has no explainer; it offers :predict",
    ),
    HTTPStatus.BAD_GATEWAY: (
        "The predictor failed, or did not answer as its protocol says", "the predictor's answer cannot be read",
    ),
    HTTPStatus.GATEWAY_TIMEOUT: ("The predictor was too slow", "the predictor was too slow"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("The model is not ready", "Model with name model is not ready."),
}  # fmt: skip
ERROR_HEADERS: dict[HTTPStatus, tuple[str, Schema]] = {
    HTTPStatus.UNAUTHORIZED: ("WWW-Authenticate", one_of("Bearer")),
    HTTPStatus.METHOD_NOT_ALLOWED: ("Allow", STRING),
    HTTPStatus.TOO_MANY_REQUESTS: ("Retry-After", {"type": "integer", "minimum": 1, "description": "seconds"}),
}
