"""Embedders that sentence-transformers saves, and what this server makes of texts with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from benchmarks.texts import docstrings
from tests.conftest import Serve

TEXTS = ["Hello world", "x", *docstrings()[:20:5], "a long one " * 300]


def embed(serve: Serve, folder: Path, texts: list[str] = TEXTS, **arguments: Any) -> Any:
    response = serve(model_dir=folder, **arguments).client.post("/v1/models/model:predict", json={"instances": texts})
    assert response.status_code == 200, response.text
    return np.array(response.json()["predictions"])


def save_embedder(folder: Path, source: Path, pooling: str = "mean", **options: Any) -> Path:
    """Save a model that embeds by pooling a tiny encoder's tokens, without a fixed length of its vectors.

    Args:
        source: the folder of the encoder.
        options: further ones of sentence-transformers, such as prompts.
    """
    modules = [models.Transformer(str(source)), models.Pooling(32, pooling)]
    SentenceTransformer(modules=modules, device="cpu", **options).save(str(folder))
    return folder


def change(path: Path, **values: Any) -> None:
    """Change keys of a JSON file; a value of None takes the key away."""
    written = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in written.items() if value is not None}))
