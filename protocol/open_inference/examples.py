"""Examples of requests and answers of the Open Inference Protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from protocol.open_inference.inputs import INPUT
from protocol.openapi.example_texts import (
    CANDIDATE_LABELS,
    CONTEXT,
    CONTINUED,
    DOCUMENTS,
    GREEDY,
    HELLO,
    HELLO_SUMMARY,
    HELLO_VECTOR,
    PEOPLE,
    PEOPLE_LABELS,
    QUERY,
    QUESTION_IN_CONTEXT,
    SENTIMENTS,
    TOPICS,
    TWO_WEIGHTS,
    masked_texts,
)
from protocol.openapi.operations import Example, ExampleModel, Examples
from protocol.output_tensors import wire_name
from protocol.tensors import BYTES, Tensor
from runners.core.predictions import MAIN, OFFSETS, RELEVANCE
from runners.core.task import Task

_OUTPUT = wire_name(MAIN)


def infer_examples(model: ExampleModel) -> Examples:
    """The examples of `infer`; none for an unknown task."""
    if model.task is None:
        return {}
    if model.task is Task.FILL_MASK:
        text = masked_texts(model.mask)[0]
        examples: Examples = {"text": Example("A text", _ask(text), [_tensor(_OUTPUT, BYTES, [1], ["paris"])])}
    else:
        examples = _INFER[model.task]
    return {
        key: each if each.answer is None else replace(each, answer=_answer(model, each.answer))
        for key, each in examples.items()
    }


def binary_examples(model: ExampleModel) -> Examples:
    """The examples of `infer` with the binary extension: the JSON, and then each text after its length."""
    match model.task:
        case None:
            return {}
        case Task.FILL_MASK:
            texts = masked_texts(model.mask)[:1]
        case task:
            texts = _BINARY[task]
    shape = [1, 2] if model.task is Task.QUESTION_ANSWERING else [len(texts)]
    data = bytes(Tensor(INPUT.name, BYTES, shape, texts).to_binary())
    tensor = {
        "name": INPUT.name,
        "shape": shape,
        "datatype": BYTES,
        "parameters": {"binary_data_size": len(data)},
    }
    head = orjson.dumps({"id": "1", "inputs": [tensor]})
    return {"texts": Example(f"Texts; inference-header-content-length is {len(head)}", (head + data).decode())}


def generate_examples(model: ExampleModel, is_stream: bool = False) -> Examples:
    """The examples of `generate` or, without answers, of `generate_stream`; none if the model does not generate."""
    if model.task not in CONTINUED:
        return {}
    text, continuation = CONTINUED[model.task]
    answer = {"model_name": model.name, "model_version": model.version, "text_output": continuation}
    is_known = continuation is not None and not is_stream
    return {"text": Example("A text", {"text_input": text, "parameters": GREEDY}, answer if is_known else None)}


def _ask(*texts: str, **more: Any) -> dict[str, Any]:
    return {"id": "1", "inputs": [_tensor(INPUT.name, BYTES, [len(texts)], [*texts])], **more}


def _answer(model: ExampleModel, outputs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"model_name": model.name, "model_version": model.version, "id": "1", "outputs": outputs}


def _tensor(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


_BEST_CLASS = {"outputs": [{"name": _OUTPUT, "parameters": {"classification": 1}}]}
_LABELS = {"candidate_labels": ",".join(CANDIDATE_LABELS), "hypothesis_template": "This text is about {}."}
_QUESTION = _tensor(INPUT.name, BYTES, [1, 2], [QUESTION_IN_CONTEXT, CONTEXT])
_QUERY = _tensor(INPUT.name, BYTES, [1, 2], [QUERY, DOCUMENTS[1]])
# The second text has a token less.
_PEOPLE_LABELS = [*PEOPLE_LABELS[0], *PEOPLE_LABELS[1], -100]
_PEOPLE_OFFSETS = [
    0, 0, 0, 4, 5, 8, 9, 12, 13, 18, 18, 19, 0, 0,
    0, 0, 0, 5, 6, 10, 11, 13, 14, 20, 0, 0, -100, -100,
]  # fmt: skip
# The answers are lists of tensors.
_INFER: dict[Task, Examples] = {
    Task.SEQUENCE_CLASSIFICATION: {
        "texts": Example("Two texts", _ask(*SENTIMENTS), [_tensor(_OUTPUT, "INT64", [2], [1, 0])]),
        "best": Example("The best class of a text, with its score and name", _ask(SENTIMENTS[1], **_BEST_CLASS)),
    },
    Task.ZERO_SHOT_CLASSIFICATION: {
        "labels": Example("Scores of two labels for two texts", _ask(*TOPICS, parameters=_LABELS))
    },
    Task.QUESTION_ANSWERING: {
        "question": Example("A question and where its answer is", {"id": "1", "inputs": [_QUESTION]})
    },
    Task.TOKEN_CLASSIFICATION: {
        "offsets": Example(
            "Two texts, and where their tokens are",
            _ask(*PEOPLE, parameters={"return_offsets_mapping": True}),
            [
                _tensor(_OUTPUT, "INT64", [2, 1, 7], _PEOPLE_LABELS),
                _tensor(wire_name(OFFSETS), "INT64", [2, 7, 2], _PEOPLE_OFFSETS),
            ],
        ),
        "entities": Example(
            "Entities of two texts, a tensor for each column",
            _ask(*PEOPLE, parameters={"aggregation_strategy": "simple"}),
        ),
    },
    Task.TEXT_EMBEDDING: {
        "text": Example(HELLO_SUMMARY, _ask(HELLO), [_tensor(_OUTPUT, "FP32", [1, 384], HELLO_VECTOR)])
    },
    Task.SPARSE_EMBEDDING: {
        "text": Example(
            "The two highest weights of a text, a tensor for each column", _ask(HELLO, parameters=TWO_WEIGHTS)
        )
    },
    Task.TEXT_RANKING: {
        "relevance": Example(
            "The score of a query and a text", {"id": "1", "inputs": [_QUERY], "outputs": [{"name": RELEVANCE}]}
        )
    },
    **{
        task: {
            "text": Example(
                "A text",
                _ask(text, parameters=GREEDY),
                None if continuation is None else [_tensor(_OUTPUT, BYTES, [1], [continuation])],
            )
        }
        for task, (text, continuation) in CONTINUED.items()
    },
}
_BINARY: dict[Task, list[str]] = {
    Task.SEQUENCE_CLASSIFICATION: SENTIMENTS,
    Task.ZERO_SHOT_CLASSIFICATION: TOPICS,
    Task.QUESTION_ANSWERING: [QUESTION_IN_CONTEXT, CONTEXT],
    Task.TOKEN_CLASSIFICATION: PEOPLE,
    Task.TEXT_EMBEDDING: [HELLO],
    Task.SPARSE_EMBEDDING: [HELLO],
    Task.TEXT_RANKING: DOCUMENTS[:1],
    **{task: [text] for task, (text, _) in CONTINUED.items()},
}
