"""Ask a server with Cohere's own clients, and print what they say as JSON.

python -m tests.clients.cohere_calls http://localhost:3000 EMBEDDER RANKER CLASSIFIER
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import cohere

from tests.clients.ranked_texts import DOCUMENTS, QUERY, TEXTS

TYPES = ["float", "int8", "uint8", "binary", "ubinary", "base64"]


def embed(url: str, model: str) -> dict[str, Any]:
    first, second = cohere.Client("none", base_url=url), cohere.ClientV2("none", base_url=url)
    plain = first.embed(texts=TEXTS, model=model)
    typed = first.embed(
        texts=TEXTS, model=model, input_type="search_query", embedding_types=["float", "int8"], truncate="END"
    )
    whole = second.embed(
        model=model, texts=TEXTS, input_type="search_document", embedding_types=TYPES, truncate="NONE",
        output_dimension=16, max_tokens=100, priority=1,
    )  # fmt: skip
    parts: Any = [{"content": [{"type": "text", "text": text}]} for text in TEXTS]
    mixed = second.embed(model=model, inputs=parts, input_type="classification")
    return {
        "plain": [plain.response_type, plain.embeddings, plain.texts],
        "typed": [typed.response_type, typed.embeddings.float_, typed.embeddings.int8],
        "whole": {name: getattr(whole.embeddings, "float_" if name == "float" else name) for name in TYPES},
        "mixed": mixed.embeddings.float_,
        "tokens": whole.meta.billed_units.input_tokens,
    }


def rerank(url: str, model: str) -> dict[str, Any]:
    first, second = cohere.Client("none", base_url=url), cohere.ClientV2("none", base_url=url)
    asked: dict[str, Any] = {"model": model, "query": QUERY}
    objects = [{"title": "x", "text": text, "more": "y"} for text in DOCUMENTS]
    answers = {
        "first": first.rerank(**asked, documents=DOCUMENTS),
        "best": first.rerank(**asked, documents=DOCUMENTS, top_n=1, return_documents=True, max_chunks_per_doc=1),
        "objects": first.rerank(**asked, documents=objects, rank_fields=["text"], return_documents=True),
        "second": second.rerank(**asked, documents=DOCUMENTS, top_n=2, max_tokens_per_doc=4096),
        "cut": second.rerank(**asked, documents=DOCUMENTS, max_tokens_per_doc=3, priority=1),
    }
    return {name: [json.loads(each.json()) for each in answer.results] for name, answer in answers.items()}


async def ask_asynchronously(url: str, embedder: str, ranker: str) -> dict[str, Any]:
    first, second = cohere.AsyncClient("none", base_url=url), cohere.AsyncClientV2("none", base_url=url)
    embedded = await second.embed(model=embedder, texts=TEXTS, input_type="search_document", embedding_types=["float"])
    ranked = await second.rerank(model=ranker, query=QUERY, documents=DOCUMENTS)
    tokens = await first.tokenize(text=TEXTS[0], model=embedder, offline=False)
    return {
        "embedded": embedded.embeddings.float_,
        "ranked": [each.index for each in ranked.results],
        "tokens": tokens.tokens,
    }


def tokenize(url: str, model: str) -> dict[str, Any]:
    client = cohere.Client("none", base_url=url)
    # By default it would download Cohere's tokenizer, and asks the server if it cannot.
    tokens = client.tokenize(text=TEXTS[0], model=model)
    text = client.detokenize(tokens=tokens.tokens, model=model, offline=False).text
    return {"tokens": tokens.tokens, "strings": tokens.token_strings, "text": text}


def fail(url: str) -> Any:
    try:
        cohere.ClientV2("none", base_url=url).embed(model="no", texts=TEXTS, input_type="search_query")
    except cohere.NotFoundError as error:
        return error.body


def main(url: str, embedder: str, ranker: str, _: str) -> None:
    said = {
        "embed": embed(url, embedder),
        "rerank": rerank(url, ranker),
        "tokenize": tokenize(url, embedder),
        "async": asyncio.run(ask_asynchronously(url, embedder, ranker)),
        "error": fail(url),
    }
    print(json.dumps(said))  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
