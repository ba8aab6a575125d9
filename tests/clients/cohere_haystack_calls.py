"""Ask a server with Haystack's components for Cohere, and print what they say as JSON.

python -m tests.clients.cohere_haystack_calls http://localhost:3000 EMBEDDER RANKER CLASSIFIER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import CohereDocumentEmbedder, CohereTextEmbedder
from haystack_integrations.components.embedders.cohere.embedding_types import EmbeddingTypes
from haystack_integrations.components.rankers.cohere import CohereRanker

from tests.clients.ranked_texts import DOCUMENTS, QUERY, TEXTS


def main(url: str, embedder: str, ranker: str, _: str) -> None:
    shared: dict[str, Any] = {"api_key": Secret.from_token("none"), "api_base_url": url}
    documents = [Document(content=text, meta={"title": "x"}) for text in DOCUMENTS]
    said: dict[str, Any] = {}
    said["text"] = CohereTextEmbedder(model=embedder, **shared).run(text=TEXTS[0])["embedding"]
    whole: dict[str, Any] = {"input_type": "search_query", "truncate": "START", "timeout": 60, **shared}
    said["all"] = CohereTextEmbedder(model=embedder, embedding_type=EmbeddingTypes.INT8, **whole).run(text=TEXTS[0])[
        "embedding"
    ]
    embedded = CohereDocumentEmbedder(model=embedder, progress_bar=False, **shared).run(documents=documents)
    said["documents"] = [each.embedding for each in embedded["documents"]]
    asynchronous = asyncio.run(CohereTextEmbedder(model=embedder, **shared).run_async(text=TEXTS[0]))
    said["async"] = asynchronous["embedding"]
    ranked = CohereRanker(model=ranker, **shared).run(query=QUERY, documents=documents)["documents"]
    said["ranked"] = [[each.content, each.score] for each in ranked]
    titled = CohereRanker(model=ranker, top_k=1, meta_fields_to_embed=["title"], max_tokens_per_doc=8, **shared)
    said["titled"] = [[each.content, each.score] for each in titled.run(query=QUERY, documents=documents)["documents"]]
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
