"""Examples of V1's requests and answers."""

from __future__ import annotations

from protocol.openapi.example_texts import (
    CANDIDATE_LABELS,
    CONTEXT,
    CONTINUED,
    DOCUMENTS,
    GREEDY,
    HELLO,
    HELLO_SUMMARY,
    HELLO_VECTOR,
    PAIR,
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
from runners.core.task import Task

_LABELS = {"parameters": {"candidate_labels": CANDIDATE_LABELS}}
_PROBABILITIES = {"return_probabilities": True}
_QUESTION = {"instances": [{"question": QUESTION_IN_CONTEXT, "context": CONTEXT}]}
_ENTITIES = {"parameters": {"aggregation_strategy": "simple"}}
_EXAMPLES: dict[Task, Examples] = {
    Task.SEQUENCE_CLASSIFICATION: {
        "texts": Example("Two texts", {"instances": SENTIMENTS}, {"predictions": [1, 0]}),
        "probabilities": Example(
            "Probabilities",
            {"instances": SENTIMENTS[1:], "parameters": _PROBABILITIES},
            {"predictions": [{"0": 0.8518, "1": 0.1482}]},
        ),
        "pair": Example("A pair of texts", {"instances": [PAIR]}),
    },
    Task.ZERO_SHOT_CLASSIFICATION: {
        "labels": Example("Scores of two labels for two texts", {"instances": TOPICS, **_LABELS}),
        "pair": Example("Whether the second text follows from the first", {"instances": [PAIR]}),
    },
    Task.QUESTION_ANSWERING: {
        "question": Example("A question and where its answer is", _QUESTION),
        "answers": Example("The three best answers", {**_QUESTION, "parameters": {"top_k": 3}}),
    },
    Task.TOKEN_CLASSIFICATION: {
        "texts": Example("Two texts", {"instances": PEOPLE}, {"predictions": [[labels] for labels in PEOPLE_LABELS]}),
        "entities": Example("Entities of a text", {"instances": PEOPLE[1:], **_ENTITIES}),
        "words": Example("A text as words, a label for each", {"instances": [{"words": PEOPLE[1].split()}]}),
    },
    Task.TEXT_EMBEDDING: {"text": Example(HELLO_SUMMARY, {"instances": [HELLO]}, {"predictions": [HELLO_VECTOR]})},
    Task.SPARSE_EMBEDDING: {
        "text": Example("The two highest weights of a text", {"instances": [HELLO], "parameters": TWO_WEIGHTS})
    },
    Task.TEXT_RANKING: {"pair": Example("The logit of a query and a text", {"instances": [[QUERY, DOCUMENTS[1]]]})},
    **{
        task: {
            "text": Example(
                "A text",
                {"instances": [text], "parameters": GREEDY},
                None if continuation is None else {"predictions": [continuation]},
            )
        }
        for task, (text, continuation) in CONTINUED.items()
    },
}


def predict_examples(model: ExampleModel) -> Examples:
    """The examples of `:predict`; none for an unknown task."""
    if model.task is Task.FILL_MASK:
        request = {"instances": masked_texts(model.mask)}
        return {"texts": Example("Two texts", request, {"predictions": ["paris", "france"]})}
    return {} if model.task is None else _EXAMPLES[model.task]
