"""Ask a server with LlamaIndex's classes for Hugging Face's servers, and print what they say as JSON.

python -m tests.clients.llama_index_calls http://localhost:3000 CHAT EMBEDDER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.embeddings.huggingface_api import HuggingFaceInferenceAPIEmbedding
from llama_index.llms.huggingface_api import HuggingFaceInferenceAPI

from tests.clients.hub_texts import PROMPT, QUESTION, TEXTS


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
