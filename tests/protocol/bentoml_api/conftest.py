from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol.bentoml_api.methods import METHODS
from tests.conftest import GeneratorFolder, ModelFolder, Serve
from tests.families import MINILM, name_classes
from tests.served import Served

NAMES = {
    "classify": ["negative", "mixed", "positive"],
    "classify_tokens": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
}

ServeMethod = Callable[..., Served]


@pytest.fixture(scope="module")
def serve_method(model_folder: ModelFolder, generator_folder: GeneratorFolder, serve: Serve) -> ServeMethod:
    """A tiny model that answers a method: `serve_method("classify", top_k=3)`."""

    def start(name: str, family: str = "bert", **arguments: Any) -> Served:
        if name in ("generate", "chat"):
            return serve(model_dir=generator_folder("llama"), backend="huggingface", **arguments)
        if name == "embed":
            return serve(model_dir=MINILM, **arguments)
        [task] = METHODS[name].tasks
        config = name_classes(NAMES[name]) if name in NAMES else {}
        return serve(model_dir=model_folder(family, task, **config), task=task, **arguments)

    return start
