"""Ask a server with LangChain's classes for Hugging Face's endpoints, and print what they say as JSON.

python -m tests.clients.langchain_endpoint_calls http://localhost:3000 CHAT
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from langchain_huggingface import ChatHuggingFace, HuggingFaceEndpoint

from tests.clients.hub_texts import PROMPT, QUESTION


def main(url: str, chat: str) -> None:
    endpoint = f"{url}/models/{chat}"
    # Its own defaults sample; these do not.
    greedy = {"endpoint_url": endpoint, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "typical_p": 1.0}
    writer = HuggingFaceEndpoint(**greedy)
    said: dict[str, Any] = {
        "completed": writer.invoke(PROMPT),
        "streamed": "".join(writer.stream(PROMPT)),
        "stopped": writer.invoke(PROMPT, stop=["Par"]),
        "batch": writer.batch([PROMPT, PROMPT]),
        "defaults": [
            HuggingFaceEndpoint(endpoint_url=endpoint, max_new_tokens=4, seed=seed).invoke(PROMPT) for seed in (1, 1)
        ],
    }
    talker = ChatHuggingFace(llm=writer, model_id=chat, max_tokens=8, temperature=1e-6)
    said["chat"] = talker.invoke(QUESTION).content
    said["chat_stream"] = "".join(str(chunk.content) for chunk in talker.stream(QUESTION))
    said["async"], said["chat_async"] = asyncio.run(_ask_later(writer, talker))
    said["usage"] = talker.invoke(QUESTION).usage_metadata
    print(json.dumps(said))  # noqa: T201


async def _ask_later(writer: Any, talker: Any) -> tuple[Any, Any]:
    """Both in one event loop, whose connections they share."""
    return await writer.ainvoke(PROMPT), (await talker.ainvoke(QUESTION)).content


if __name__ == "__main__":
    main(*sys.argv[1:])
