"""Ask a server with the client made from Text Embeddings Inference's document, and print what it says as JSON.

python -m tests.clients.tei_calls http://localhost:3000
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from text_embeddings_inference_client import Client
from text_embeddings_inference_client.api.text_embeddings_inference import embed, get_model_info, health, metrics
from text_embeddings_inference_client.models import EmbedRequest

from tests.clients.ranked_texts import TEXTS


def main(url: str, *_: str) -> None:
    client = Client(base_url=url)
    said: dict[str, Any] = {"health": health.sync_detailed(client=client).status_code}
    said["metrics"] = metrics.sync_detailed(client=client).status_code
    said["info"] = json.loads(get_model_info.sync_detailed(client=client).content)
    said["text"] = embed.sync(client=client, json_body=EmbedRequest(inputs=TEXTS[0], truncate=False))
    said["texts"] = embed.sync(client=client, json_body=EmbedRequest(inputs=TEXTS))
    said["async"] = asyncio.run(embed.asyncio(client=client, json_body=EmbedRequest(inputs=TEXTS)))
    long = EmbedRequest(inputs="word " * 2000, truncate=False)
    refused = embed.sync_detailed(client=client, json_body=long)
    said["refused"] = [refused.status_code, refused.parsed.to_dict()]
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
