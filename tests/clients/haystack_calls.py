"""Ask a server with Haystack's components for Hugging Face's servers, and print what they say as JSON.

python -m tests.clients.haystack_calls http://localhost:3000 CHAT EMBEDDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from haystack import Document
from haystack.dataclasses import ChatMessage, StreamingChunk
from haystack_integrations.components.embedders.huggingface_api import (
    HuggingFaceAPIDocumentEmbedder,
    HuggingFaceAPITextEmbedder,
)
from haystack_integrations.components.generators.huggingface_api import HuggingFaceAPIChatGenerator
from haystack_integrations.components.rankers.huggingface_api import HuggingFaceTEIRanker

from tests.clients.hub_texts import QUERY, QUESTION, TEXTS


def main(url: str, chat: str, embedder: str) -> None:
    said: dict[str, Any] = {}
    for kind in ("text_embeddings_inference", "inference_endpoints"):
        arguments = {"api_type": kind, "api_params": {"url": f"{url}/models/{embedder}"}}
        texts = HuggingFaceAPITextEmbedder(**arguments)
        said[f"{kind} text"] = texts.run(TEXTS[0])["embedding"]
        said[f"{kind} async"] = asyncio.run(_embed_later(arguments))
        for normalize in (False, True):
            documents = HuggingFaceAPIDocumentEmbedder(
                **arguments, normalize=normalize, progress_bar=False, batch_size=2
            )
            answered = documents.run([Document(content=text) for text in TEXTS])["documents"]
            said[f"{kind} documents {normalize}"] = [document.embedding for document in answered]
    ranker = HuggingFaceTEIRanker(url=url, top_k=2)
    ranked = ranker.run(query=QUERY, documents=[Document(content=text) for text in TEXTS])["documents"]
    said["ranked"] = [[document.content, document.score] for document in ranked]
    pieces: list[str] = []

    def note(chunk: StreamingChunk) -> None:
        pieces.append(chunk.content)

    for kind in ("text_generation_inference", "inference_endpoints"):
        api_params = {"url": f"{url}/models/{chat}"}
        options = {"max_tokens": 8, "temperature": 0}
        asked = [ChatMessage.from_user(QUESTION)]
        generator = HuggingFaceAPIChatGenerator(
            kind, api_params, generation_kwargs=dict(options), stop_words=["nowhere"]
        )
        said[f"{kind} chat"] = generator.run(asked)["replies"][0].text
        streaming = HuggingFaceAPIChatGenerator(
            kind, api_params, generation_kwargs=dict(options), streaming_callback=note
        )
        pieces.clear()
        said[f"{kind} reply"] = streaming.run(asked)["replies"][0].text
        said[f"{kind} stream"] = "".join(pieces)
    print(json.dumps(said))  # noqa: T201


async def _embed_later(arguments: dict[str, Any]) -> Any:
    embedder = HuggingFaceAPITextEmbedder(**arguments)
    answered = await embedder.run_async(TEXTS[0])
    return answered["embedding"]


if __name__ == "__main__":
    main(*sys.argv[1:])
