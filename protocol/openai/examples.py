"""Examples of requests and answers of OpenAI's API."""

from __future__ import annotations

from typing import Any

from protocol.openapi.example_texts import (
    DOCUMENTS,
    FRANCE,
    GREEDY,
    HELLO,
    HELLO_SUMMARY,
    HELLO_VECTOR,
    PEOPLE,
    QUERY,
    QUESTION,
    SENTIMENTS,
    TRANSLATION,
)
from protocol.openapi.operations import Example, ExampleModel, Examples
from runners.core.task import Task

_CREATED = 1795534818
_CITY = {
    "type": "json_schema",
    "json_schema": {
        "name": "city",
        "schema": {
            "type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"],
            "additionalProperties": False,
        },
    },
}  # fmt: skip


def call_examples(model: ExampleModel) -> dict[str, Examples]:
    """The examples of each call that a model of the task answers, by the call's name."""
    match model.task:
        case Task.TEXT_EMBEDDING:
            further = _describe_pooling("A text's vector", model.name, HELLO)
            return {"embeddings": _describe_embeddings(model.name), **_describe_ranking(model.name), **further}
        case Task.TEXT_RANKING:
            return {**_describe_ranking(model.name), **_describe_tokenizer(QUERY)}
        case Task.SEQUENCE_CLASSIFICATION | Task.ZERO_SHOT_CLASSIFICATION:
            classify = {"text": Example("A text", {"model": model.name, "input": SENTIMENTS[0]})}
            return {"classify": classify, **_describe_pooling("A text's classes", model.name, SENTIMENTS[0])}
        case Task.TOKEN_CLASSIFICATION:
            return _describe_pooling("The classes of a text's tokens", model.name, PEOPLE[0])
        case Task.FILL_MASK | Task.QUESTION_ANSWERING:
            return _describe_tokenizer(HELLO)
        case Task.TEXT_GENERATION:
            return {
                "completions": _describe_completions(model.name),
                "chat/completions": _describe_chats(model.name),
                "responses": _describe_responses(model.name),
                **_describe_tokenizer(FRANCE),
            }
        case Task.TEXT2TEXT_GENERATION:
            request = {"model": model.name, "prompt": TRANSLATION, "max_tokens": 10, "temperature": 0}
            return {"completions": {"prompt": Example("A prompt", request)}, **_describe_tokenizer(TRANSLATION)}
    return {}


def _describe_embeddings(name: str) -> Examples:
    answer = {
        "id": "embd-a5d7a7a5a1c14e1d9d6f4ad6d0bb6a5e",
        "object": "list",
        "created": _CREATED,
        "model": name,
        "data": [{"object": "embedding", "index": 0, "embedding": HELLO_VECTOR}],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    tokens = [[101, 7592, 102], [5, 6]]
    return {
        "text": Example(HELLO_SUMMARY, {"model": name, "input": HELLO}, answer),
        "tokens": Example("Two texts as token ids, special tokens included", {"input": tokens}),
        "base64": Example("A text", {"model": name, "input": HELLO, "encoding_format": "base64", "dimensions": 4}),
    }


def _describe_ranking(name: str) -> dict[str, Examples]:
    return {
        "rerank": {
            "documents": Example("Two documents", {"model": name, "query": QUERY, "documents": DOCUMENTS}),
            "best": Example(
                "The better one's place",
                {"query": QUERY, "documents": DOCUMENTS, "top_n": 1, "return_documents": False},
            ),
        },
        "score": {"texts": Example("A text and two others", {"model": name, "text_1": QUERY, "text_2": DOCUMENTS})},
    }


def _describe_pooling(summary: str, name: str, text: str) -> dict[str, Examples]:
    pooling = {"text": Example(summary, {"model": name, "input": text})}
    return {"pooling": pooling, **_describe_tokenizer(text)}


def _describe_completions(name: str) -> Examples:
    request = {"model": name, "prompt": FRANCE, **GREEDY}
    choice = {"index": 0, "text": " Paris.", "logprobs": None, "finish_reason": "length"}
    return {
        "prompt": Example("A prompt", request, _answer("text_completion", name, choice, 5, 2)),
        "stream": Example("A prompt, as a stream", {**request, "stream": True}),
    }


def _describe_chats(name: str) -> Examples:
    request = {
        "model": name,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 10,
        "temperature": 0,
    }
    message = {"role": "assistant", "content": "The capital of France is Paris.", "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return {
        "question": Example("A question", request, _answer("chat.completion", name, choice, 37, 8)),
        "stream": Example("A question, as a stream", {**request, "stream": True}),
        "schema": Example("An answer that a JSON schema describes", {**request, "response_format": _CITY}),
    }


def _describe_responses(name: str) -> Examples:
    return {
        "text": Example("A question", {"model": name, "input": QUESTION, "max_output_tokens": 16}),
        "stream": Example("A question, as a stream", {"input": QUESTION, "max_output_tokens": 16, "stream": True}),
    }


def _describe_tokenizer(text: str) -> dict[str, Examples]:
    return {
        "tokenize": {"text": Example("A text", {"prompt": text, "return_token_strs": True})},
        "detokenize": {"tokens": Example("Three tokens", {"tokens": [5, 6, 7]})},
    }


def _answer(kind: str, name: str, choice: dict[str, Any], prompt: int, completion: int) -> dict[str, Any]:
    """An answer, with the numbers of tokens of its prompt and its completion."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    head = {"id": "cmpl-1b3f4432ec3f4b278ad45539b71670e4", "created": _CREATED, "model": name, "object": kind}
    return {**head, "choices": [choice], "usage": usage}
