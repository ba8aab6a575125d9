"""Examples of calls of BentoML's methods and of their answers."""

from __future__ import annotations

from protocol.openapi.example_texts import (
    CANDIDATE_LABELS,
    CONTEXT,
    CONTINUED,
    DOCUMENTS,
    GREEDY,
    HELLO,
    PEOPLE,
    QUERY,
    QUESTION,
    QUESTION_IN_CONTEXT,
    SENTIMENTS,
    TOPICS,
    masked_texts,
)
from protocol.openapi.operations import Example, ExampleModel, Examples
from runners.core.task import GENERATION, Task

# By method; the texts of `generate` and of `fill_mask` depend on the model.
_EXAMPLES: dict[str, Example] = {
    "classify": Example("The two best classes of two texts", {"texts": SENTIMENTS, "top_k": 2}),
    "classify_tokens": Example("Entities of two texts", {"texts": PEOPLE, "aggregation_strategy": "simple"}),
    "classify_zero_shot": Example("Labels of two texts", {"texts": TOPICS, "candidate_labels": CANDIDATE_LABELS}),
    "answer": Example("A question and its context", {"questions": [QUESTION_IN_CONTEXT], "contexts": [CONTEXT]}),
    "embed": Example("A text", {"texts": [HELLO]}),
    "embed_sparse": Example("The ten highest values of a text", {"texts": [HELLO], "max_active_dims": 10}),
    "rank": Example("Two texts", {"query": QUERY, "texts": DOCUMENTS}),
    "chat": Example("A question", {"messages": [{"role": "user", "content": QUESTION}], **GREEDY}),
}


def method_examples(method: str, model: ExampleModel) -> Examples:
    """The examples of a method that the model answers."""
    if method == "fill_mask":
        return {"texts": Example("The best tokens for two masks", {"texts": masked_texts(model.mask), "top_k": 1})}
    if method == "generate":
        task = model.task if model.task in GENERATION else None
        return {} if task is None else {"text": Example("A text", {"prompt": CONTINUED[task][0], **GREEDY})}
    if method == "chat" and model.task is not Task.TEXT_GENERATION:
        # Encoder-decoders mostly have no chat template.
        return {}
    return {"call": _EXAMPLES[method]}
