"""Embeddings against sentence-transformers, for the forms its files can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from benchmarks.texts import docstrings
from runners.errors import ModelLoadError
from tests.conftest import ModelFolder, Serve
from tests.families import MINILM

TEXTS = ["Hello world", "x", *docstrings()[:20:5], "a long one " * 300]


def embed(serve: Serve, folder: Path, **arguments: Any) -> Any:
    response = serve(model_dir=folder, **arguments).post("/v1/models/model:predict", json={"instances": TEXTS})
    assert response.status_code == 200, response.text
    return np.array(response.json()["predictions"])


def test_minilm(serve: Serve) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, MINILM), expected, atol=2e-6)


@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
)
@pytest.mark.parametrize("after", ["nothing", "dense", "dense and normalize"])
def test_modules(pooling: Any, after: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")), max_seq_length=100)
    pool = models.Pooling(32, pooling)
    modules: list[Any] = [transformer, pool]
    if "dense" in after:
        modules.append(models.Dense(pool.get_embedding_dimension(), 7))
    if "normalize" in after:
        modules.append(models.Normalize())
    reference = SentenceTransformer(modules=modules, device="cpu")
    reference.save(str(tmp_path))
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)


def test_default_prompt(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    reference = SentenceTransformer(
        modules=[transformer, models.Pooling(32, "mean")], device="cpu",
        prompts={"query": "search for: "}, default_prompt_name="query",
    )  # fmt: skip
    reference.save(str(tmp_path))
    np.testing.assert_allclose(embed(serve, tmp_path), reference.encode(TEXTS), atol=2e-5)


def test_mean_of_length_one_without_files(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("roberta", "text_embedding")
    reference = SentenceTransformer(
        modules=[models.Transformer(str(folder)), models.Pooling(32, "mean"), models.Normalize()], device="cpu"
    )
    np.testing.assert_allclose(embed(serve, folder), reference.encode(TEXTS), atol=2e-5)


def test_an_unknown_module_is_refused(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    SentenceTransformer(modules=[transformer, models.Pooling(32, "mean")], device="cpu").save(str(tmp_path))
    listed = (tmp_path / "modules.json").read_text()
    (tmp_path / "modules.json").write_text(listed.replace(".Pooling", ".Clairvoyance"))
    with pytest.raises(ModelLoadError, match=r"modules.json has a Clairvoyance"):
        embed(serve, tmp_path)
