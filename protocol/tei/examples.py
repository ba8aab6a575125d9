"""Examples of requests and answers of Text Embeddings Inference."""

from __future__ import annotations

from protocol.openapi.example_texts import (
    DOCUMENTS,
    HELLO,
    HELLO_IDS,
    HELLO_SUMMARY,
    HELLO_VECTOR,
    PAIR,
    QUERY,
    SENTIMENTS,
)
from protocol.openapi.operations import Example, Examples
from runners.core.task import Task

# By path, of all tasks.
COMMON_EXAMPLES: dict[str, Examples] = {
    "/tokenize": {"inputs": Example("A text", {"inputs": HELLO})},
    "/decode": {"ids": Example("Token ids", {"ids": [[1, 2]]})},
}
# By task and path.
EXAMPLES: dict[Task, dict[str, Examples]] = {
    Task.SEQUENCE_CLASSIFICATION: {
        "/predict": {
            "text": Example("A text", {"inputs": SENTIMENTS[1]}),
            "pair": Example("A pair of texts", {"inputs": PAIR}),
            "batch": Example("A text and a pair", {"inputs": [SENTIMENTS[1:], PAIR]}),
        }
    },
    Task.TEXT_EMBEDDING: {
        "/embed": {"text": Example(HELLO_SUMMARY, {"inputs": HELLO}, [HELLO_VECTOR])},
        "/embed_all": {"text": Example("A text", {"inputs": HELLO})},
        "/similarity": {
            "sentences": Example(
                "A query and two texts", {"inputs": {"source_sentence": QUERY, "sentences": DOCUMENTS}}
            )
        },
        "/decode": {"ids": Example("Token ids", {"ids": [HELLO_IDS]}, [HELLO.lower()])},
    },
    Task.SPARSE_EMBEDDING: {"/embed_sparse": {"text": Example("A text", {"inputs": HELLO})}},
    Task.TEXT_RANKING: {
        "/predict": {"pair": Example("A query and a text", {"inputs": [QUERY, DOCUMENTS[1]]})},
        "/rerank": {"texts": Example("Two texts", {"query": QUERY, "texts": DOCUMENTS, "return_text": True})},
    },
}
