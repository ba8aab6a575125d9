"""Examples of requests and answers for the OpenAPI document; the answers come from the README's models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from protocol.open_inference.inputs import INPUT
from protocol.openapi.operations import Example, Examples
from protocol.output_tensors import wire_name
from protocol.tensors import BYTES, Tensor
from protocol.versions import MODEL_VERSION
from runners.core.predictions import MAIN, OFFSETS, RELEVANCE
from runners.core.task import Task

_OUTPUT = wire_name(MAIN)
_FRANCE = "The capital of France is"
_QUESTION = "What is the capital of France?"
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
_GREEDY = {"max_tokens": 2, "temperature": 0}
_PAIR = ["A man eats.", "Somebody has a meal."]
_QUERY = "Where do pandas live?"
_DOCUMENTS = ["Rome is in Italy.", "The panda lives in China."]


def describe_examples(task: Task | None, name: str, mask: str) -> Examples:
    """The examples of requests that a model answers.

    Args:
        task: the model's task; an unknown one has no examples.
        mask: the mask token of a model that fills masks.
    """
    match task:
        case Task.FILL_MASK:
            return _describe_fill_mask(name, mask)
        case Task.SEQUENCE_CLASSIFICATION:
            return _describe_sequence_classification(name)
        case Task.ZERO_SHOT_CLASSIFICATION:
            return _describe_zero_shot_classification()
        case Task.QUESTION_ANSWERING:
            return _describe_question_answering()
        case Task.TOKEN_CLASSIFICATION:
            return _describe_token_classification(name)
        case Task.TEXT_EMBEDDING:
            return _describe_text_embedding(name)
        case Task.TEXT_RANKING:
            return _describe_text_ranking(name)
        case Task.TEXT_GENERATION:
            return _describe_text_generation(name)
        case Task.TEXT2TEXT_GENERATION:
            return _describe_text2text_generation(name)
        case None:
            return {}


def _describe_fill_mask(name: str, mask: str) -> Examples:
    texts = [f"{_FRANCE} {mask}.", f"The capital of {mask} is paris."]
    return {
        "predict": {"texts": Example("Two texts", {"instances": texts}, {"predictions": ["paris", "france"]})},
        "infer": {"text": Example("A text", _ask(texts[0]), _answer(name, _tensor(_OUTPUT, BYTES, [1], ["paris"])))},
        "infer_binary": _describe_binary(texts[0]),
    }


def _describe_sequence_classification(name: str) -> Examples:
    texts = ["Hello, my dog is cute", "I am feeling sad"]
    request = {"instances": texts[1:], "parameters": {"return_probabilities": True}}
    best = {"outputs": [{"name": _OUTPUT, "parameters": {"classification": 1}}]}
    return {
        "predict": {
            "texts": Example("Two texts", {"instances": texts}, {"predictions": [1, 0]}),
            "probabilities": Example("Probabilities", request, {"predictions": [{"0": 0.8518, "1": 0.1482}]}),
            "pair": Example("A pair of texts", {"instances": [_PAIR]}),
        },
        "infer": {
            "texts": Example("Two texts", _ask(*texts), _answer(name, _tensor(_OUTPUT, "INT64", [2], [1, 0]))),
            "best": Example("The best class of a text, with its score and name", _ask(texts[1], **best)),
        },
        "infer_binary": _describe_binary(*texts),
        "/predict": {
            "text": Example("A text", {"inputs": texts[1]}),
            "pair": Example("A pair of texts", {"inputs": _PAIR}),
            "batch": Example("A text and a pair", {"inputs": [texts[1:], _PAIR]}),
        },
    }


def _describe_zero_shot_classification() -> Examples:
    """Examples without answers, which differ by model."""
    texts = ["The new phone has a better camera.", "They won the cup final."]
    request = {"parameters": {"candidate_labels": ["sports", "technology"]}}
    by_commas = {"candidate_labels": "sports,technology", "hypothesis_template": "This text is about {}."}
    return {
        "predict": {
            "labels": Example("Scores of two labels for two texts", {"instances": texts, **request}),
            "pair": Example("Whether the second text follows from the first", {"instances": [_PAIR]}),
        },
        "infer": {"labels": Example("Scores of two labels for two texts", _ask(*texts, parameters=by_commas))},
        "infer_binary": _describe_binary(*texts),
    }


def _describe_question_answering() -> Examples:
    """Examples without answers, which differ by model."""
    question, context = "Where does Maria live?", "Maria flew to Rome, but she lives in Munich."
    request = {"instances": [{"question": question, "context": context}]}
    tensor = _tensor(INPUT.name, BYTES, [1, 2], [question, context])
    return {
        "predict": {
            "question": Example("A question and where its answer is", request),
            "answers": Example("The three best answers", {**request, "parameters": {"top_k": 3}}),
        },
        "infer": {"question": Example("A question and where its answer is", {"id": "1", "inputs": [tensor]})},
        "infer_binary": _describe_binary(question, context, pairs=True),
    }


def _describe_text_ranking(name: str) -> Examples:
    pair = [_QUERY, _DOCUMENTS[1]]
    tensor = {"name": INPUT.name, "shape": [1, 2], "datatype": BYTES, "data": pair}
    request = {"id": "1", "inputs": [tensor], "outputs": [{"name": RELEVANCE}]}
    return {
        "predict": {"pair": Example("The logit of a query and a text", {"instances": [pair]})},
        "infer": {"relevance": Example("The score of a query and a text", request)},
        "infer_binary": _describe_binary(_DOCUMENTS[0]),
        **_describe_ranking(name),
        "/predict": {"pair": Example("A query and a text", {"inputs": pair})},
        "/rerank": {"texts": Example("Two texts", {"query": _QUERY, "texts": _DOCUMENTS, "return_text": True})},
    }


def _describe_ranking(name: str) -> Examples:
    """The examples of ranking over OpenAI's API."""
    return {
        "rerank": {
            "documents": Example("Two documents", {"model": name, "query": _QUERY, "documents": _DOCUMENTS}),
            "best": Example("The better one's place", {"query": _QUERY, "documents": _DOCUMENTS, "top_n": 1,
                                                       "return_documents": False}),
        },
        "score": {"texts": Example("A text and two others", {"model": name, "text_1": _QUERY, "text_2": _DOCUMENTS})},
    }  # fmt: skip


def _describe_token_classification(name: str) -> Examples:
    texts = ["Have you met Sarah?", "Maria flew to Munich"]
    labels = [0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 2, 0, -100]
    offsets = [0, 0, 0, 4, 5, 8, 9, 12, 13, 18, 18, 19, 0, 0, 0, 0, 0, 5, 6, 10, 11, 13, 14, 20, 0, 0, -100, -100]
    tensors = [_tensor(_OUTPUT, "INT64", [2, 1, 7], labels), _tensor(wire_name(OFFSETS), "INT64", [2, 7, 2], offsets)]
    request = _ask(*texts, parameters={"return_offsets_mapping": True})
    entities = {"parameters": {"aggregation_strategy": "simple"}}
    return {
        "predict": {
            "texts": Example("Two texts", {"instances": texts}, {"predictions": [[labels[:7]], [labels[7:13]]]}),
            "entities": Example("Entities of a text", {"instances": texts[1:], **entities}),
            "words": Example("A text as words, a label for each", {"instances": [{"words": texts[1].split()}]}),
        },
        "infer": {
            "offsets": Example("Two texts, and where their tokens are", request, _answer(name, *tensors)),
            "entities": Example("Entities of two texts, a tensor for each column", _ask(*texts, **entities)),
        },
        "infer_binary": _describe_binary(*texts),
    }


def _describe_text_embedding(name: str) -> Examples:
    text = "Hello world"
    beginning = [-0.034477208, 0.031023212, 0.0067349784]
    summary = f"A text; of the 384 numbers of its answer these are the first {len(beginning)}"
    return {
        "predict": {"text": Example(summary, {"instances": [text]}, {"predictions": [beginning]})},
        "infer": {"text": Example(summary, _ask(text), _answer(name, _tensor(_OUTPUT, "FP32", [1, 384], beginning)))},
        "infer_binary": _describe_binary(text),
        "embeddings": {
            "text": Example(
                summary,
                {"model": name, "input": text},
                {
                    "object": "list",
                    "data": [{"object": "embedding", "index": 0, "embedding": beginning}],
                    "model": name,
                    "usage": {"prompt_tokens": 4, "total_tokens": 4},
                },
            ),
            "tokens": Example("Two texts as token ids, special tokens included", {"input": [[101, 7592, 102], [5, 6]]}),
            "base64": Example("A text", {"model": name, "input": text, "encoding_format": "base64", "dimensions": 4}),
        },
        **_describe_ranking(name),
        "/embed": {"text": Example(summary, {"inputs": text}, [beginning])},
    }


def _describe_text_generation(name: str) -> Examples:
    completion = {"model": name, "prompt": _FRANCE, **_GREEDY}
    chat = {
        "model": name,
        "messages": [{"role": "user", "content": _QUESTION}],
        "max_tokens": 10,
        "temperature": 0,
    }
    choice = {"index": 0, "text": " Paris.", "logprobs": None, "finish_reason": "length"}
    reply = {"role": "assistant", "content": "The capital of France is Paris.", "refusal": None}
    return {
        **_describe_generation(name, _FRANCE, " Paris."),
        "completions": {
            "prompt": Example("A prompt", completion, _openai_answer("text_completion", name, choice, 5, 2)),
            "stream": Example("A prompt, as a stream", {**completion, "stream": True}),
        },
        "chat/completions": {
            "question": Example(
                "A question",
                chat,
                _openai_answer(
                    "chat.completion",
                    name,
                    {"index": 0, "message": reply, "logprobs": None, "finish_reason": "stop"},
                    37,
                    8,
                ),
            ),
            "stream": Example("A question, as a stream", {**chat, "stream": True}),
            "schema": Example("An answer that a JSON schema describes", {**chat, "response_format": _CITY}),
        },
        "responses": {
            "text": Example("A question", {"model": name, "input": _QUESTION, "max_output_tokens": 16}),
            "stream": Example("A question, as a stream", {"input": _QUESTION, "max_output_tokens": 16, "stream": True}),
        },
        **_describe_tokenizer(_FRANCE),
    }


def _describe_text2text_generation(name: str) -> Examples:
    text = "translate English to German: Hello world"
    completion = {"model": name, "prompt": text, "max_tokens": 10, "temperature": 0}
    return {
        **_describe_generation(name, text, None),
        "completions": {"prompt": Example("A prompt", completion)},
        **_describe_tokenizer(text),
    }


def _describe_tokenizer(text: str) -> Examples:
    return {
        "tokenize": {"text": Example("A text", {"prompt": text, "return_token_strs": True})},
        "detokenize": {"tokens": Example("Three tokens", {"tokens": [5, 6, 7]})},
    }


def _describe_generation(name: str, text: str, continuation: str | None) -> Examples:
    """The examples of generation over V1 and the Open Inference Protocol, without answers if these are unknown."""
    request = {"text_input": text, "parameters": _GREEDY}
    known = continuation is not None
    of_model = {"model_name": name, "model_version": MODEL_VERSION}
    return {
        "predict": {
            "text": Example(
                "A text",
                {"instances": [text], "parameters": _GREEDY},
                {"predictions": [continuation]} if known else None,
            )
        },
        "infer": {
            "text": Example(
                "A text",
                _ask(text, parameters=_GREEDY),
                _answer(name, _tensor(_OUTPUT, BYTES, [1], [continuation])) if known else None,
            )
        },
        "infer_binary": _describe_binary(text),
        "generate": {"text": Example("A text", request, {**of_model, "text_output": continuation} if known else None)},
        "generate_stream": {"text": Example("A text", request)},
    }


def _describe_binary(*texts: str, pairs: bool = False) -> Mapping[str, Example]:
    """A body of the binary extension: the JSON, and then each text after its length."""
    shape = [len(texts) // 2, 2] if pairs else [len(texts)]
    data = bytes(Tensor(INPUT.name, BYTES, shape, [*texts]).to_binary())
    tensor = {
        "name": INPUT.name,
        "shape": shape,
        "datatype": BYTES,
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"id": "1", "inputs": [tensor]})
    return {"texts": Example(f"Texts; inference-header-content-length is {len(head)}", (head + data).decode())}


def _ask(*texts: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "inputs": [_tensor(INPUT.name, BYTES, [len(texts)], [*texts])], **more}


def _answer(name: str, *outputs: dict[str, Any]) -> dict[str, Any]:
    return {"model_name": name, "model_version": MODEL_VERSION, "id": "1", "outputs": [*outputs]}


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def _openai_answer(kind: str, name: str, choice: dict[str, Any], prompt: int, completion: int) -> dict[str, Any]:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    head = {"id": "cmpl-1b3f4432ec3f4b278ad45539b71670e4", "created": 1795534818, "model": name, "object": kind}
    return {**head, "choices": [choice], "usage": usage}
