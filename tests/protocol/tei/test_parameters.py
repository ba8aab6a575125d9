"""Nothing is ignored: every field of another call, or of a neighbouring protocol, is done, neutral, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from huggingface_hub import (
    FeatureExtractionInput,
    TextClassificationParameters,
    ZeroShotClassificationParameters,
)
from starlette.testclient import TestClient

from protocol.cohere.requests import CohereEmbedRequest
from protocol.openai import pooling_parameters
from protocol.refused_parameters import RefusedParameter
from protocol.tei.embed import TeiEmbedRequest, TeiEmbedTokensRequest
from protocol.tei.parameters import REFUSED, REFUSED_OF_SIMILARITY
from protocol.tei.predict import TeiPredictRequest
from protocol.tei.requests import PromptedFields
from protocol.tei.rerank import TeiRerankRequest
from protocol.tei.routes import CALLS
from protocol.tei.similarity import TeiSimilarityRequest
from protocol.tei.tokenize import TeiDecodeRequest, TeiTokenizeRequest
from tests.conftest import ModelFolder, Serve

DOCUMENT = Path(__file__).parents[2] / "documents" / "tei_openapi.json"
FORMS: Mapping[str, type[msgspec.Struct]] = {
    "/embed": TeiEmbedRequest,
    "/embed_all": TeiEmbedTokensRequest,
    "/embed_sparse": TeiEmbedTokensRequest,
    "/similarity": TeiSimilarityRequest,
    "/predict": TeiPredictRequest,
    "/rerank": TeiRerankRequest,
    "/tokenize": TeiTokenizeRequest,
    "/decode": TeiDecodeRequest,
}
BODIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "/embed": ("text_embedding", {"inputs": "a"}),
    "/embed_all": ("text_embedding", {"inputs": "a"}),
    "/embed_sparse": ("sparse_embedding", {"inputs": "a"}),
    "/similarity": ("text_embedding", {"inputs": {"source_sentence": "a", "sentences": ["b"]}}),
    "/predict": ("sequence_classification", {"inputs": "a"}),
    "/rerank": ("text_ranking", {"query": "a", "texts": ["b"]}),
    "/tokenize": ("text_ranking", {"inputs": "a"}),
    "/decode": ("text_ranking", {"ids": [1]}),
}
# Fields that tell whose call it is, at a path that protocols share.
SHARED = {"/rerank": {"documents"}, "/tokenize": {"prompt", "messages"}}
# A name, an id and an order of work do not change an answer; the others are about chats.
WITHOUT_EFFECT = {
    "model", "request_id", "priority", "tools", "add_generation_prompt", "continue_final_message", "chat_template",
    "chat_template_kwargs",
}  # fmt: skip


def list_fields(form: type[msgspec.Struct]) -> set[str]:
    return {field.name for field in msgspec.structs.fields(form)}


def list_neighbours() -> set[str]:
    names = pooling_parameters.MEANINGS.keys() | list_fields(CohereEmbedRequest)
    for form in (FeatureExtractionInput, TextClassificationParameters, ZeroShotClassificationParameters):
        names |= form.__annotations__.keys()
    return names - WITHOUT_EFFECT


@pytest.mark.parametrize("path", CALLS)
def test_every_field_is_known(path: str) -> None:
    schemas = json.loads(DOCUMENT.read_text(encoding="utf-8"))["components"]["schemas"]
    ours = {
        name
        for schema in ("Decode", "Embed", "EmbedAll", "EmbedSparse", "Predict", "Rerank", "Similarity", "Tokenize")
        for name in schemas[f"{schema}Request"]["properties"]
    }
    ours |= schemas["SimilarityParameters"]["properties"].keys() | schemas["SimilarityInput"]["properties"].keys()
    known = list_fields(FORMS[path]) | REFUSED[path].keys()
    assert not (ours | list_neighbours()) - known
    if path == "/similarity":
        assert not (ours | list_neighbours()) - list_fields(PromptedFields) - REFUSED_OF_SIMILARITY.keys()


@pytest.fixture(scope="module")
def clients(model_folder: ModelFolder, serve: Serve) -> dict[str, TestClient]:
    tasks = {task for task, _ in BODIES.values()}
    return {task: serve(model_dir=model_folder("bert", task), task=task).client for task in tasks}


@pytest.mark.parametrize("path", CALLS)
def test_what_is_not_done_is_refused_by_name(path: str, clients: dict[str, TestClient]) -> None:
    task, body = BODIES[path]
    client = clients[task]
    expected = client.post(path, json=body).json()

    def check(refused: Mapping[str, RefusedParameter], nested: bool) -> None:
        for name, refusal in refused.items():
            for value in (None, *refusal.neutral):
                given = {name: value}
                response = client.post(path, json={**body, **({"parameters": given} if nested else given)})
                assert (response.status_code, response.json()) == (200, expected), given
            given = {name: {"a": 1}}
            response = client.post(path, json={**body, **({"parameters": given} if nested else given)})
            assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
            place = f"{name} in parameters" if nested else name
            assert response.json()["error"].startswith(f"{place} is not supported here")

    check({name: each for name, each in REFUSED[path].items() if name not in SHARED.get(path, ())}, nested=False)
    if path == "/similarity":
        check(REFUSED_OF_SIMILARITY, nested=True)
    assert client.post(path, json={**body, "nobody_knows": 1}).json() == expected


@pytest.mark.parametrize(
    ("path", "more", "message"),
    [
        ("/similarity", {"prompt_name": "x"}, "prompt_name is not supported here; put it in parameters"),
        ("/similarity", {"truncate": True}, "truncate is not supported here; put it in parameters"),
        ("/similarity", {"truncation_direction": "Left"},
         "truncation_direction is not supported here; put it in parameters"),
        ("/similarity", {"parameters": {"dimensions": 8}}, "dimensions in parameters is not supported here"),
        ("/embed", {"parameters": {"normalize": False}},
         "parameters is not supported here; parameters stand beside inputs"),
        ("/embed", {"truncation": False}, "truncation is not supported here; use truncate"),
        ("/embed", {"encoding_format": "base64"}, 'encoding_format is not supported here; allowed: "float"'),
        ("/embed_all", {"dimensions": 8}, "dimensions is not supported here"),
        # The vectors of tokens are the model's own.
        ("/embed_all", {"normalize": True}, "normalize is not supported here; allowed: false"),
        ("/embed_sparse", {"normalize": True}, "normalize is not supported here; allowed: false"),
        ("/predict", {"top_k": 1}, "top_k is not supported here; the answer is whole"),
        ("/predict", {"return_text": True}, "return_text is not supported here; allowed: false"),
        ("/predict", {"top_n": 1}, "top_n is not supported here; the answer is whole"),
        ("/rerank", {"return_documents": True}, "return_documents is not supported here; allowed: false"),
        # Texts are whole here.
        ("/tokenize", {"truncate": True}, "truncate is not supported here; allowed: false"),
        ("/tokenize", {"truncation": True}, "truncation is not supported here; allowed: false"),
        ("/decode", {"add_special_tokens": True}, "add_special_tokens is not supported here; allowed: false"),
    ],
)  # fmt: skip
def test_messages(path: str, more: dict[str, Any], message: str, clients: dict[str, TestClient]) -> None:
    task, body = BODIES[path]
    response = clients[task].post(path, json={**body, **more})
    assert (response.status_code, response.json()["error"]) == (422, message)
