"""The calls of Weaviate's module, as its client writes and reads them, against sentence-transformers.

The bodies are those of usecases/modulecomponents/clients/transformers in weaviate/weaviate, which sends its own empty
fields too, and no content type.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from starlette.testclient import TestClient

from protocol.application import create_application
from runners.core.arguments import Arguments
from runners.hosting.selection import create_runner
from tests.conftest import ModelFolder, Serve, ServeSeveral
from tests.embedders import save_embedder
from tests.families import MINILM
from tests.served import models_of

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 300]


@pytest.fixture(scope="module")
def embedder(serve: Serve) -> TestClient:
    return serve(model_dir=MINILM, model_name="minilm", max_client_batch_size=32).client


@pytest.fixture(scope="module")
def prompted(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with prompts, whose vectors have no fixed length."""
    source = model_folder("bert", "text_embedding")
    return save_embedder(
        tmp_path_factory.mktemp("prompted"), source, prompts={"query": "search for: ", "document": "text: "}
    )


def vectorize(client: TestClient, text: str, task_type: str, path: str = "/vectors", **config: Any) -> Any:
    """What Weaviate's client sends for one text, and reads."""
    asked = {"pooling_strategy": "masked_mean", "task_type": task_type, **config}
    body = {"text": text, "dims": 0, "vector": None, "error": "", "config": asked}
    response = client.post(path, content=json.dumps(body))
    assert response.status_code == 200, response.text
    return response.json()


def test_a_text(embedder: TestClient) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    for text, wanted in zip(TEXTS, expected, strict=True):
        answer = vectorize(embedder, text, "passage")
        assert [*answer] == ["text", "vector", "dim", "dims"]
        assert (answer["text"], answer["dim"], answer["dims"]) == (text, 384, 384)
        np.testing.assert_allclose(answer["vector"], wanted, atol=1e-5)


def test_texts(embedder: TestClient) -> None:
    body = {"texts": TEXTS, "config": {"pooling_strategy": "masked_mean", "task_type": "passage"}}
    answer = embedder.post("/vectors", json=body).json()
    assert [*answer] == ["vectors", "dims"]
    assert answer["dims"] == 384
    np.testing.assert_allclose(
        answer["vectors"], SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS), atol=1e-5
    )


def test_types_dimensions_and_length(prompted: Path, serve: Serve) -> None:
    """As the module's container does it with sentence-transformers."""
    client, model = serve(model_dir=prompted).client, SentenceTransformer(str(prompted), device="cpu")
    for task_type, encode in (
        ("query", model.encode_query),
        ("passage", model.encode_document),
        ("", model.encode_document),
    ):
        for dimensions in (None, 8):
            [expected] = encode(TEXTS[:1], normalize_embeddings=True, truncate_dim=dimensions)
            answer = vectorize(client, TEXTS[0], task_type, dimensions=dimensions)
            np.testing.assert_allclose(answer["vector"], expected, atol=1e-5)
            assert answer["dims"] == len(expected)


def test_meta(embedder: TestClient, serve_several: ServeSeveral, model_folder: ModelFolder) -> None:
    answer = embedder.get("/meta").json()
    assert answer["model"] == "minilm"
    assert (answer["task"], answer["dimensions"], answer["max_length"]) == ("text_embedding", "384", "256")
    several = serve_several(
        *({"model_dir": model_folder("bert", "text_embedding"), "model_name": name} for name in ("one", "two"))
    ).client
    assert several.get("/meta?model=two").json()["model"] == "two"
    assert several.get("/meta").status_code == 400
    assert vectorize(several, "x", "query", "/vectors?model=one")["dims"] == 32


def test_probes(embedder: TestClient, model_folder: ModelFolder) -> None:
    arguments = Arguments(model_dir=str(model_folder("bert", "text_embedding")), api_key=("key",))
    loading = TestClient(create_application(models_of(create_runner(arguments)), arguments))
    for path, status in (("/.well-known/live", 200), ("/.well-known/ready", 503)):
        assert embedder.get(path).status_code == 200
        assert loading.get(path).status_code == status


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("{", 400, "the body is not valid JSON: Input data was truncated"),
        ({}, 400, "give one of text and texts"),
        ({"text": "x", "texts": ["x"]}, 400, "give one of text and texts"),
        ({"texts": []}, 400, "texts is empty; give at least one"),
        ({"text": "x", "config": {"pooling_strategy": "cls"}}, 400,
         "the body is not as expected: Invalid enum value 'cls' - at `$.config.pooling_strategy`"),
        ({"text": "x", "config": {"tasktype": "query"}}, 400,
         "the body is not as expected: Object contains unknown field `tasktype` - at `$.config`"),
        ({"text": "x", "task_type": "query"}, 400, "the body is not as expected: Object contains unknown field `task_type`"),
        ({"text": "x", "config": {"dimensions": 999}}, 400, "dimensions is 999; the model's vectors have 384"),
        ({"texts": ["x"] * 33}, 413, "33 texts are more than the 32 that --max_client_batch_size allows"),
    ],
)  # fmt: skip
def test_errors(body: Any, status: int, message: str, embedder: TestClient) -> None:
    response = embedder.post("/vectors", content=body if isinstance(body, str) else json.dumps(body))
    assert (response.status_code, response.json()) == (status, {"error": message})


def test_another_task(model_folder: ModelFolder, serve: Serve) -> None:
    client = serve(model_dir=model_folder("bert", "fill_mask")).client
    for response in (client.post("/vectors", json={"text": "x"}), client.get("/meta")):
        assert response.status_code == 400
        assert response.json()["error"].startswith("model does not serve /")
