"""Embeddings against sentence-transformers, for the forms its files can have."""

from __future__ import annotations

import shutil
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


def test_lower_casing(serve: Serve, tmp_path: Path) -> None:
    """A cased tokenizer under a model whose sentence-transformers files lower-case."""
    folder = Path(shutil.copytree(MINILM, tmp_path / "model"))
    for filename, old, new in (
        ("sentence_bert_config.json", '"do_lower_case": false', '"do_lower_case": true'),
        ("tokenizer_config.json", '"do_lower_case": true', '"do_lower_case": false'),
    ):
        text = (folder / filename).read_text()
        assert old in text
        (folder / filename).write_text(text.replace(old, new))
    reference = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(embed(serve, folder), reference, atol=2e-6)


def test_mean_of_length_one_without_files(model_folder: ModelFolder, serve: Serve) -> None:
    folder = model_folder("roberta", "text_embedding")
    reference = SentenceTransformer(
        modules=[models.Transformer(str(folder)), models.Pooling(32, "mean"), models.Normalize()], device="cpu"
    )
    np.testing.assert_allclose(embed(serve, folder), reference.encode(TEXTS), atol=2e-5)


@pytest.mark.parametrize(
    ("filename", "old", "new", "message"),
    [
        ("modules.json", ".Pooling", ".Clairvoyance", "modules.json has a Clairvoyance"),
        ("modules.json", ".Pooling", ".Dense", "modules.json has a Dense in an unusual place"),
        ("modules.json", ".Normalize", ".Pooling", "modules.json has a Pooling in an unusual place"),
        ("1_Pooling/config.json", '"include_prompt": true', '"include_prompt": false', "pools without the prompt"),
        ("1_Pooling/config.json", '"pooling_mode": "mean"', '"pooling_mode": "median"', "unknown pooling 'median'"),
    ],
)
def test_what_would_give_other_vectors_is_refused(
    filename: str, old: str, new: str, message: str, model_folder: ModelFolder, serve: Serve, tmp_path: Path
) -> None:
    modules = [
        models.Transformer(str(model_folder("bert", "text_embedding"))),
        models.Pooling(32, "mean"),
        models.Normalize(),
    ]
    prompts = {"query": "search for: "}
    SentenceTransformer(modules=modules, device="cpu", prompts=prompts, default_prompt_name="query").save(str(tmp_path))
    text = (tmp_path / filename).read_text()
    assert old in text
    (tmp_path / filename).write_text(text.replace(old, new))
    with pytest.raises(ModelLoadError, match=message):
        embed(serve, tmp_path)
