"""Ask a server with LlamaIndex's classes for Hugging Face's servers, and print what they say as JSON.

python -m tests.clients.llama_index_calls http://localhost:3000 CHAT EMBEDDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.embeddings.huggingface_api import HuggingFaceInferenceAPIEmbedding
from llama_index.embeddings.text_embeddings_inference import TextEmbeddingsInference
from llama_index.llms.huggingface_api import HuggingFaceInferenceAPI
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference

from tests.clients.hub_texts import PROMPT, QUERY, QUESTION, TEXTS


def main(url: str, chat: str, embedder: str) -> None:
    def embeddings() -> Any:
        # An object keeps connections of the event loop that each of its calls makes.
        return HuggingFaceInferenceAPIEmbedding(model_name=f"{url}/models/{embedder}")

    said: dict[str, Any] = {
        "text": embeddings().get_text_embedding(TEXTS[0]),
        "texts": embeddings().get_text_embedding_batch(TEXTS),
        "query": embeddings().get_query_embedding(TEXTS[0]),
        "async": asyncio.run(embeddings().aget_text_embedding_batch(TEXTS)),
    }
    # Without a name in the path, the only model that embeds.
    for name, path in (("tei", "/embed"), ("named tei", f"/embed?model={embedder}")):
        asked_of = TextEmbeddingsInference(model_name="any", base_url=url, endpoint=path)
        said[f"{name} text"] = asked_of.get_text_embedding(TEXTS[0])
        said[f"{name} query"] = asked_of.get_query_embedding(TEXTS[0])
        said[f"{name} texts"] = asked_of.get_text_embedding_batch(TEXTS)
        said[f"{name} async"] = asyncio.run(asked_of.aget_text_embedding_batch(TEXTS))
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in TEXTS]
    ranked = TextEmbeddingInference(base_url=url, top_n=2).postprocess_nodes(nodes, query_str=QUERY)
    said["ranked"] = [[node.text, node.score] for node in ranked]
    # Its temperature must be above 0.
    options = {"num_output": 8, "temperature": 1e-6, "token": "none"}
    talker = HuggingFaceInferenceAPI(model_name=f"{url}/models/{chat}", **options)
    asked = [ChatMessage(role="user", content=QUESTION)]
    said["chat"] = talker.chat(asked).message.content
    said["chat_stream"] = "".join(chunk.delta or "" for chunk in talker.stream_chat(asked))
    said["chat_async"] = asyncio.run(talker.achat(asked)).message.content
    said["completed_chat"] = talker.complete(QUESTION).text
    writer = HuggingFaceInferenceAPI(model_name=f"{url}/models/{chat}", task="text-generation", **options)
    said["completed"] = writer.complete(PROMPT, formatted=True).text
    said["completed_stream"] = "".join(chunk.delta or "" for chunk in writer.stream_complete(PROMPT, formatted=True))
    said["completed_async"] = asyncio.run(writer.acomplete(PROMPT, formatted=True)).text
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
