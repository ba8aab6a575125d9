"""Ask a server with Infinity's client, and print what it says as JSON.

python -m tests.clients.infinity_calls http://localhost:3000 EMBEDDER RANKER CLASSIFIER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from infinity_client import Client
from infinity_client.api.default import classify, embeddings, health, metrics_metrics_get, models, rerank
from infinity_client.models import (
    ClassifyInput,
    EmbeddingEncodingFormat,
    OpenAIEmbeddingInputText,
    OpenAIEmbeddingInputTextModality,
    RerankInput,
)

from tests.clients.ranked_texts import DOCUMENTS, QUERY, TEXTS


def main(url: str, embedder: str, ranker: str, classifier: str) -> None:
    client = Client(base_url=url, raise_on_unexpected_status=True)
    said: dict[str, Any] = {"health": health.sync(client=client).to_dict()}
    said["models"] = [each.to_dict() for each in models.sync(client=client).data]
    said["metrics"] = metrics_metrics_get.sync_detailed(client=client).status_code
    plain = OpenAIEmbeddingInputText(input_=TEXTS, model=embedder)
    whole = OpenAIEmbeddingInputText(
        input_=TEXTS[0], model=embedder, encoding_format=EmbeddingEncodingFormat.FLOAT, user="x", dimensions=16,
        modality=OpenAIEmbeddingInputTextModality.TEXT,
    )  # fmt: skip
    answers = [embeddings.sync(client=client, body=each) for each in (plain, whole)]
    answers.append(asyncio.run(embeddings.asyncio(client=client, body=plain)))
    said["embeddings"] = [[each.embedding for each in answer.data] for answer in answers]
    said["usage"] = answers[0].usage.to_dict()
    # Only one model of the server ranks pairs, but one that embeds ranks too, so that each request names its model.
    bodies = [
        RerankInput(query=QUERY, documents=DOCUMENTS, model=ranker),
        RerankInput(query=QUERY, documents=DOCUMENTS, model=ranker, raw_scores=True, return_documents=True, top_n=1),
    ]
    said["rerank"] = [rerank.sync(client=client, body=body).to_dict() for body in bodies]
    # Without a name, the only model that classifies.
    said["classify"] = [
        classify.sync(client=client, body=body).to_dict()
        for body in (
            ClassifyInput(input_=TEXTS, model=classifier),
            ClassifyInput(input_=TEXTS[:1], model=classifier, raw_scores=True),
        )
    ]
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
