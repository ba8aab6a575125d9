from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Dial, ModelFolder, Serve
from tests.embedders import save_embedder
from tests.families import name_classes
from tests.served import ServedOverGrpc

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASKS = {
    "fill_mask": {}, "sequence_classification": name_classes(["negative", "mixed", "pósitive", "other:", ""]),
    "text_embedding": {}, "token_classification": name_classes(NAMES),
    "zero_shot_classification": {}, "question_answering": {},
    "multi_label": {**name_classes(["calm", "glad", "sad", "sour", "mad"]), "problem_type": "multi_label_classification"},
}  # fmt: skip

Run = Callable[..., ServedOverGrpc]


@pytest.fixture(scope="module")
def run(model_folder: ModelFolder, serve: Serve, dial: Dial) -> Run:
    """A tiny model with names: `run("fill_mask", family="bert", top_k=3)`."""

    @cache
    def start(kind: str, family: str = "bert", **arguments: Any) -> ServedOverGrpc:
        folder = model_folder(family, kind.replace("multi_label", "sequence_classification"), **TASKS[kind])
        served = serve(model_dir=folder, **arguments)
        return ServedOverGrpc(served.client, served.models, served.arguments, dial(served))

    return start


@pytest.fixture(scope="module")
def plain(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that embeds, whose vectors have no fixed length, with a prompt."""
    source = model_folder("bert", "text_embedding")
    return save_embedder(tmp_path_factory.mktemp("plain"), source, prompts={"query": "search for: "})
