from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as models

from runners.core.arguments import Arguments
from runners.generator.transformers_engine import TransformersEngine
from tests.conftest import GeneratorFolder, ModelFolder
from tests.embedders import change

MakeEngine = Callable[..., TransformersEngine]
Start = Callable[[Path], TransformersEngine]


@pytest.fixture
def saved(model_folder: ModelFolder, tmp_path: Path) -> Path:
    """The files of a SentenceTransformer of a model with 512 positions, and a tokenizer that says 300."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    modules = [transformer, models.Pooling(32, "mean"), models.Normalize()]
    SentenceTransformer(modules=modules, device="cpu").save(str(tmp_path))
    change(tmp_path / "tokenizer_config.json", model_max_length=300)
    return tmp_path


@pytest.fixture(scope="module")
def make_engine(generator_folder: GeneratorFolder) -> Iterator[MakeEngine]:
    """A loaded engine: `make_engine("llama", max_batch_tokens=4)`; one for all tests that ask for the same."""
    made: dict[str, TransformersEngine] = {}

    def make(family: str, **arguments: Any) -> TransformersEngine:
        key = f"{family}-{arguments}"
        if key not in made:
            made[key] = TransformersEngine(Arguments(model_dir=str(generator_folder(family)), **arguments))
            made[key].load()
        return made[key]

    yield make
    for engine in made.values():
        engine.close()


@pytest.fixture
def own_engine(generator_folder: GeneratorFolder) -> Iterator[TransformersEngine]:
    """An engine that a test may spoil."""
    engine = TransformersEngine(Arguments(model_dir=str(generator_folder("gpt2"))))
    engine.load()
    yield engine
    engine.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """A loaded engine, closed after the test."""
    engines: list[TransformersEngine] = []

    def make(folder: Path) -> TransformersEngine:
        engines.append(TransformersEngine(Arguments(model_dir=str(folder))))
        engines[-1].load()
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()
