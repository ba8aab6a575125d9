"""Schemas of the answers of OpenAI's API, for the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocol.openapi.schemas import (
    BOOLEAN,
    CLASS,
    COUNT,
    INTEGER,
    NUMBER,
    SCORES,
    STRING,
    Schema,
    array_of,
    map_of,
    object_of,
    one_of,
    or_null,
    reference,
)
from runners.core.generation import FinishReason

FINISH_REASONS: Sequence[str] = FinishReason.__args__  # type: ignore[attr-defined]

CHUNK = object_of(
    {"data": {**STRING, "description": "A chunk or an OpenAIError, as JSON. The last event has `[DONE]`."}}
)
EVENT = object_of(
    {"event": STRING, "data": {**STRING, "description": "An event as JSON. Its `type` equals the event's name."}}
)

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
_BASE64 = {**STRING, "contentEncoding": "base64"}
_IDS = or_null(array_of(COUNT))
_TOOL_CALL = object_of(
    {"id": STRING, "type": one_of("function"), "function": object_of({"name": STRING, "arguments": STRING})}
)
# The fields of vLLM's answers beside OpenAI's.
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


def _list_answer(item: Mapping[str, Schema]) -> Schema:
    return object_of({**_HEAD, "object": one_of("list"), "data": array_of(object_of(item)), "usage": _READ})


ANSWER_SCHEMAS: dict[str, Schema] = {
    "OpenAIError": object_of(
        {"error": object_of({"message": STRING, "type": STRING, "code": or_null(STRING), "param": or_null(STRING)})}
    ),
    "Usage": _USAGE,
    "EmbeddingResponse": _list_answer(
        {"object": one_of("embedding"), "index": COUNT, "embedding": {"anyOf": [array_of(NUMBER), _BASE64]}}
    ),
    "ClassifyResponse": {
        "anyOf": [
            _list_answer({"index": COUNT, "label": STRING, "probs": array_of(NUMBER), "num_classes": COUNT}),
            # Infinity's.
            object_of(
                {**_HEAD, "object": one_of("classify"), "data": array_of(array_of(CLASS)), "usage": _READ}
            ),
        ]
    },
    "PoolingResponse": _list_answer(
        {
            "object": one_of("pooling"), "index": COUNT,
            "data": {"anyOf": [array_of(NUMBER), array_of(array_of(NUMBER)), _BASE64]},
        }
    ),
    "RerankResponse": object_of(
        {
            "id": STRING, "model": STRING, "usage": _READ,
            "results": array_of(
                object_of({"index": COUNT, "relevance_score": NUMBER}, {"document": {"type": ["object", "string"]}})
            ),
        },
        # Infinity's.
        {"object": one_of("rerank"), "created": INTEGER},
    ),
    "ScoreResponse": _list_answer({"index": COUNT, "object": one_of("score"), "score": NUMBER}),
    "CompletionResponse": _openai_answer(
        "text_completion",
        {
            "text": STRING,
            "logprobs": or_null(
                object_of(
                    {
                        "tokens": array_of(STRING), "token_logprobs": array_of({"type": ["number", "null"]}),
                        "top_logprobs": array_of(or_null(SCORES)), "text_offset": array_of(COUNT),
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
