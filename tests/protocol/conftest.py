from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import grpc
import pytest
from starlette.testclient import TestClient

from tests.conftest import Dial, ModelFolder, Serve
from tests.runners.encoder.tasks.test_entities import named

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
TASKS = {
    "fill_mask": {}, "sequence_classification": named(["negative", "mixed", "pósitive", "other:", ""]),
    "text_embedding": {}, "token_classification": named(NAMES),
    "zero_shot_classification": {}, "question_answering": {},
    "multi_label": {**named(["calm", "glad", "sad", "sour", "mad"]), "problem_type": "multi_label_classification"},
}  # fmt: skip

Served = tuple[TestClient, grpc.Channel]
Run = Callable[..., Served]


@pytest.fixture(scope="module")
def run(model_folder: ModelFolder, serve: Serve, dial: Dial) -> Run:
    """A tiny model with names: `run("fill_mask", family="bert", top_k=3)`."""

    @cache
    def start(kind: str, family: str = "bert", **arguments: Any) -> Served:
        folder = model_folder(family, kind.replace("multi_label", "sequence_classification"), **TASKS[kind])
        client = serve(model_dir=folder, **arguments)
        return client, dial(client)

    return start
