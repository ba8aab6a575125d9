"""Text Embeddings Inference's comparison of sentences, against sentence-transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

from tests.families import MINILM
from tests.protocol.tei.conftest import CheckError, Post

SOURCE = "Where do pandas live?"
SENTENCES = ["The panda lives in China.", "Rome is in Italy."]


@pytest.mark.parametrize("parameters", [{}, {"parameters": None}, {"parameters": {"truncation_direction": "Right"}}])
def test_cosines(parameters: dict[str, Any], embedder: TestClient, post: Post) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    expected = model.similarity(model.encode([SOURCE]), model.encode(SENTENCES))[0]
    inputs = {"source_sentence": SOURCE, "sentences": SENTENCES}
    np.testing.assert_allclose(post(embedder, "/similarity", inputs=inputs, **parameters), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "status", "message", "kind"),
    [
        ({"inputs": {"source_sentence": "x", "sentences": []}}, 400, "inputs.sentences is empty; give at least one", "Empty"),
        ({"inputs": {"source_sentence": "x", "sentences": ["y", ""]}}, 400,
         "a sentence is empty; give at least a character", "Empty"),
        ({"inputs": {"source_sentence": "", "sentences": ["y"]}}, 400,
         "a sentence is empty; give at least a character", "Empty"),
        ({"inputs": {"source_sentence": "x"}}, 422,
         "the body is not as expected: Object missing required field `sentences` - at `$.inputs`", "Validation"),
        ({"inputs": {"source_sentence": "x", "sentences": ["y"]}, "parameters": {"prompt_name": "no"}}, 422,
         "there is no prompt 'no': the model has none", "Validation"),
        ({"inputs": {"source_sentence": "x", "sentences": ["y"] * 4096}}, 413,
         "4097 sentences, with the source, are more than the 4096 that --max_client_batch_size allows", "Validation"),
    ],
)  # fmt: skip
def test_errors(body: Any, status: int, message: str, kind: str, embedder: TestClient, check_error: CheckError) -> None:
    check_error(embedder, "/similarity", body, status, message, kind)
