from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from tests.conftest import ModelFolder
from tests.embedders import change


@pytest.fixture
def saved(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """The files of a SentenceTransformer of a model with 512 positions, and a tokenizer that says 300."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    modules = [transformer, models.Pooling(32, "mean"), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    change(tmp_path / "tokenizer_config.json", model_max_length=300)
    return tmp_path
