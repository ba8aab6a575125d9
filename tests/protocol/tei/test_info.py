"""`/info` of models of each kind, as Text Embeddings Inference's own document describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.versions import SERVER_VERSION
from runners.core.machine import count_cores
from tests.conftest import GeneratorFolder, ModelFolder, Serve, ServeSeveral
from tests.embedders import save_embedder
from tests.families import MINILM, name_classes

LABELS = ["bad", "fair", "good", "great", "best"]


@pytest.mark.parametrize(
    ("task", "model_type"),
    [
        ("text_embedding", {"embedding": {"pooling": "mean"}}),
        ("sparse_embedding", {"embedding": {"pooling": "splade"}}),
        ("text_ranking", {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}}),
        (
            "sequence_classification",
            {
                "classifier": {
                    "id2label": {str(index): name for index, name in enumerate(LABELS)},
                    "label2id": {name: index for index, name in enumerate(LABELS)},
                }
            },
        ),
        ("token_classification", {"token_classification": {}}),
        ("fill_mask", {"fill_mask": {}}),
    ],
)
def test_info(task: str, model_type: dict[str, Any], model_folder: ModelFolder, serve: Serve) -> None:
    more = name_classes(LABELS) if task == "sequence_classification" else {}
    folder = model_folder("bert", task, **more)
    limits = {"max_concurrent_requests": 7, "max_client_batch_size": 9, "max_batch_tokens": 100, "max_length": 60}
    client = serve(model_dir=folder, task=task, model_name="m", truncation=False, **limits).client
    assert client.get("/info").json() == {
        "model_id": "m", "model_sha": None, "model_dtype": "float32", "served_model_name": "m",
        "model_type": model_type, "max_concurrent_requests": 7, "max_input_length": 60, "max_batch_tokens": 100,
        "max_batch_requests": None, "max_client_batch_size": 9, "auto_truncate": False, "tokenization_workers": _count_tokenizer_threads(),
        "version": SERVER_VERSION, "sha": None, "docker_label": None,
    }  # fmt: skip


def _count_tokenizer_threads() -> int:
    """Up to four for short texts, of the cores without two, and half as many for long ones."""
    short = min(4, max(1, count_cores() - 2))
    return short + (short + 1) // 2


@pytest.mark.parametrize(("pooling", "name"), [("cls", "cls"), ("lasttoken", "last_token")])
def test_the_pooling_of_the_files(
    pooling: str, name: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    """Under the name of `Pool` in that server's backends/core/src/lib.rs."""
    save_embedder(tmp_path, model_folder("bert", "text_embedding"), pooling)
    assert serve(model_dir=tmp_path).client.get("/info").json()["model_type"] == {"embedding": {"pooling": name}}


def test_a_generator(generator_folder: GeneratorFolder, serve: Serve) -> None:
    info = serve(model_dir=generator_folder("gpt2"), backend="huggingface").client.get("/info").json()
    found = (info["model_type"], info["max_batch_tokens"], info["tokenization_workers"])
    assert found == ({"text_generation": {}}, 0, 1)


def test_several_models(model_folder: ModelFolder, serve_several: ServeSeveral) -> None:
    client = serve_several(
        {"model_dir": MINILM, "model_name": "minilm", "max_length": 20},
        {"model_dir": model_folder("bert", "fill_mask"), "model_name": "filler", "load": False},
        {"model_dir": model_folder("roberta", "text_ranking"), "model_name": "ranker"},
    ).client
    assert client.get("/info?model=minilm").json()["max_input_length"] == 20
    assert "reranker" in client.get("/info?model=ranker").json()["model_type"]
    for query, status, kind in (
        ("", 422, "Validation"),
        ("?model=no", 404, "Validation"),
        ("?model=filler", 503, "Unhealthy"),
    ):
        response = client.get(f"/info{query}")
        assert (response.status_code, response.json()["error_type"]) == (status, kind)
    response = client.post("/info")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
