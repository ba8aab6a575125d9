"""Examples of requests of the Hugging Face inference protocol."""

from __future__ import annotations

from protocol.openapi.example_texts import (
    CANDIDATE_LABELS,
    CONTEXT,
    CONTINUED,
    DOCUMENTS,
    HELLO,
    HELLO_SUMMARY,
    HELLO_VECTOR,
    PAIR,
    PEOPLE,
    QUERY,
    QUESTION_IN_CONTEXT,
    SENTIMENTS,
    TOPICS,
    masked_texts,
)
from protocol.openapi.operations import Example, ExampleModel, Examples
from runners.core.task import Task

_QUESTION = {"inputs": {"question": QUESTION_IN_CONTEXT, "context": CONTEXT}}
_EXAMPLES: dict[Task, Examples] = {
    Task.SEQUENCE_CLASSIFICATION: {
        "text": Example("All classes of a text", {"inputs": SENTIMENTS[1]}),
        "texts": Example("The best class of two texts", {"inputs": SENTIMENTS, "parameters": {"top_k": 1}}),
        "pair": Example("A pair of texts", {"inputs": dict(zip(("text", "text_pair"), PAIR, strict=True))}),
    },
    Task.ZERO_SHOT_CLASSIFICATION: {
        "labels": Example("Labels", {"inputs": TOPICS[0], "parameters": {"candidate_labels": CANDIDATE_LABELS}}),
    },
    Task.QUESTION_ANSWERING: {
        "question": Example("A question and where its answer is", _QUESTION),
        "answers": Example("The three best answers", {**_QUESTION, "parameters": {"top_k": 3}}),
    },
    Task.TOKEN_CLASSIFICATION: {
        "entities": Example("Entities", {"inputs": PEOPLE[1]}),
        "tokens": Example("Tokens", {"inputs": PEOPLE[1], "parameters": {"aggregation_strategy": "none"}}),
    },
    Task.TEXT_EMBEDDING: {
        "text": Example(HELLO_SUMMARY, {"inputs": HELLO}, [HELLO_VECTOR]),
        "sentences": Example(
            "Similarities to a sentence", {"inputs": {"source_sentence": QUERY, "sentences": DOCUMENTS}}
        ),
    },
    **{
        task: {"text": Example("A text", {"inputs": text, "parameters": {"max_new_tokens": 2}})}
        for task, (text, _) in CONTINUED.items()
    },
    Task.TEXT_RANKING: {"pair": Example("A query and a text", {"inputs": {"text": QUERY, "text_pair": DOCUMENTS[1]}})},
}


def hub_examples(model: ExampleModel) -> Examples:
    """The examples of a model; none for an unknown task."""
    if model.task is Task.FILL_MASK:
        return {"text": Example("A text", {"inputs": masked_texts(model.mask)[0]})}
    return {} if model.task is None else _EXAMPLES.get(model.task, {})
