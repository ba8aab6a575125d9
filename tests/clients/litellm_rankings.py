"""Embed and rank with LiteLLM's providers, and print what they say as JSON.

python -m tests.clients.litellm_rankings http://localhost:3000 EMBEDDER RANKER CLASSIFIER
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

# It would be downloaded.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

from tests.clients.ranked_texts import DOCUMENTS, QUERY, TEXTS


def embed(url: str, model: str) -> dict[str, Any]:
    """The vectors by provider; the base URL is as each provider's documentation has it."""
    bases = {
        "openai": f"{url}/v1", "hosted_vllm": f"{url}/v1", "infinity": url, "cohere": f"{url}/v2/embed",
        "huggingface": f"{url}/embed",
    }  # fmt: skip
    further: dict[str, dict[str, Any]] = {
        "openai": {"encoding_format": "base64", "user": "x"},
        "hosted_vllm": {"dimensions": 16, "encoding_format": "float", "timeout": 60},
        "infinity": {"dimensions": 16, "encoding_format": "float"},
        "cohere": {"dimensions": 16, "input_type": "search_query", "truncate": "END"},
        "huggingface": {"truncate": True, "normalize": True},
    }
    said = {}
    for provider, base in bases.items():
        asked: dict[str, Any] = {"model": f"{provider}/{model}", "api_base": base, "api_key": "none", "input": TEXTS}
        if provider == "huggingface":
            # Else it asks the hub what the model is for.
            asked["input_type"] = "embed"
        answers = [litellm.embedding(**asked), litellm.embedding(**asked, **further[provider])]
        answers.append(asyncio.run(litellm.aembedding(**asked)))
        said[provider] = [[each["embedding"] for each in answer.data] for answer in answers]
    return said


def rerank(url: str, model: str) -> dict[str, Any]:
    """The places and scores by provider."""
    bases = {"hosted_vllm": url, "infinity": url, "cohere": url, "jina_ai": url, "huggingface": url}
    said = {}
    for provider, base in bases.items():
        asked: dict[str, Any] = {
            "model": f"{provider}/{model}", "api_base": base, "api_key": "none", "query": QUERY, "documents": DOCUMENTS
        }  # fmt: skip
        further: dict[str, Any] = {"return_documents": True, "top_n": 1}
        if provider == "infinity":
            # Its requests are as vLLM's, but it cannot read the documents in vLLM's answers.
            asked["return_documents"] = further["return_documents"] = False
        if provider in ("hosted_vllm", "cohere"):
            further |= {"max_tokens_per_doc": 4096}
        answers = [litellm.rerank(**asked), litellm.rerank(**asked | further), asyncio.run(litellm.arerank(**asked))]
        said[provider] = [[[each["index"], each["relevance_score"]] for each in answer.results] for answer in answers]
    return said


def main(url: str, embedder: str, ranker: str, _: str) -> None:
    print(json.dumps({"embed": embed(url, embedder), "rerank": rerank(url, ranker)}))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
