"""vLLM's pooling on this server's own engine, against `transformers` and sentence-transformers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

from runners.core.task import Task
from tests.conftest import ModelFolder, Serve
from tests.embedders import save_embedder
from tests.families import MINILM
from tests.served import Served

TEXTS = ["Hello world", "Serve Hugging Face models"]
PATHS = ["/pooling", "/v1/pooling", "/openai/pooling", "/openai/v1/pooling"]
CONFIGS: dict[Task, dict[str, Any]] = {
    Task.SEQUENCE_CLASSIFICATION: {"num_labels": 3}, Task.TEXT_RANKING: {"num_labels": 1},
    Task.TOKEN_CLASSIFICATION: {"num_labels": 5},
}  # fmt: skip

Start = Callable[[Task], Served]


@pytest.fixture(scope="module")
def start(model_folder: ModelFolder, serve: Serve) -> Start:
    started: dict[Task, Served] = {}

    def make(task: Task) -> Served:
        if task not in started:
            folder = MINILM if task is Task.TEXT_EMBEDDING else model_folder("bert", task, **CONFIGS[task])
            started[task] = serve(model_dir=folder, model_name="model")
        return started[task]

    return make


def expect(task: Task, folder: str, activated: bool) -> list[NDArray[np.float32]]:
    """What the reference says of TEXTS: float32 [numbers], of token classification [tokens, classes]."""
    if task is Task.TEXT_EMBEDDING:
        return [*SentenceTransformer(folder, device="cpu").encode(TEXTS)]
    kind: Any = (
        AutoModelForTokenClassification if task is Task.TOKEN_CLASSIFICATION else AutoModelForSequenceClassification
    )
    model, tokenizer = kind.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
    function = CrossEncoder(folder, device="cpu").activation_fn if task is Task.TEXT_RANKING else torch.nn.Softmax(-1)
    return [(function(each) if activated else each).numpy() for each in logits]


NAMES = {
    Task.TEXT_EMBEDDING: "embed", Task.SEQUENCE_CLASSIFICATION: "classify", Task.TEXT_RANKING: "classify",
    Task.TOKEN_CLASSIFICATION: "token_classify",
}  # fmt: skip


@pytest.mark.parametrize(
    ("task", "activated"),
    # The embedder's vectors are always normalized.
    [*((task, True) for task in NAMES), *((task, False) for task in CONFIGS)],
)
def test_numbers(task: Task, activated: bool, start: Start) -> None:
    served = start(task)
    expected = expect(task, served.folder, activated)
    for named in ({}, {"task": NAMES[task]}):
        body = {"input": TEXTS, "use_activation": None if activated else False, **named}
        answer = served.client.post("/pooling", json=body).json()
        assert [(each["object"], each["index"]) for each in answer["data"]] == [("pooling", 0), ("pooling", 1)]
        for found, array in zip(answer["data"], expected, strict=True):
            np.testing.assert_allclose(found["data"], array, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_an_answer(path: str, start: Start) -> None:
    response = start(Task.TEXT_EMBEDDING).client.post(path, json={"model": "model", "input": TEXTS})
    answer = response.json()
    assert list(answer) == ["id", "object", "created", "model", "data", "usage"]
    assert answer["id"].startswith("pooling-")
    assert (answer["object"], answer["model"]) == ("list", "model")
    tokens = sum(len(ids) for ids in AutoTokenizer.from_pretrained(MINILM)(TEXTS).input_ids)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}


def test_bytes_of_every_token(start: Start) -> None:
    """Texts have as many rows as tokens, so the header says where each is."""
    client = start(Task.TOKEN_CLASSIFICATION).client
    arrays = [
        np.array(each["data"], np.float32) for each in client.post("/pooling", json={"input": TEXTS}).json()["data"]
    ]
    in_json = client.post("/pooling", json={"input": TEXTS, "encoding_format": "base64"}).json()["data"]
    assert [base64.b64decode(each["data"]) for each in in_json] == [each.tobytes() for each in arrays]
    answer = client.post("/pooling", json={"input": TEXTS, "encoding_format": "bytes", "embed_dtype": "float16"})
    for item, array in zip(json.loads(answer.headers["metadata"])["data"], arrays, strict=True):
        assert item["shape"] == [*array.shape]
        found = np.frombuffer(answer.content[item["start"] : item["end"]], "<f2").reshape(item["shape"])
        assert found.tolist() == array.astype(np.float16).tolist()


@pytest.mark.parametrize(
    ("task", "fields", "param", "message"),
    [
        (
            Task.TEXT_EMBEDDING,
            {"task": "classify"},
            "task",
            "Unsupported task: 'classify'; model can embed or token_embed",
        ),
        (Task.TOKEN_CLASSIFICATION, {"task": "embed"}, "task", "Unsupported task: 'embed'; model can token_classify"),
        (Task.TEXT_RANKING, {"task": "plugin"}, "task", "model can classify"),
        (Task.SEQUENCE_CLASSIFICATION, {"task": "score"}, "task", "model can classify"),
        (Task.TEXT_RANKING, {"dimensions": 2}, "dimensions", "dimensions does not apply to text_ranking"),
        (
            Task.TEXT_EMBEDDING,
            {"dimensions": 7, "task": "token_embed"},
            "dimensions",
            "dimensions is for the task embed",
        ),
        (Task.TEXT_EMBEDDING, {"dimensions": 385}, "dimensions", "the model's vectors have 384"),
        (Task.TEXT_EMBEDDING, {"use_activation": False}, "use_activation", "use_activation can only be true"),
        (Task.TEXT_RANKING, {"data": 1}, "data", "data is not supported here"),
        (Task.TEXT_RANKING, {"padding": "max_length"}, "padding", 'allowed: "do_not_pad"'),
        (Task.TEXT_RANKING, {"encoding_format": "hex"}, "encoding_format", "Invalid enum value 'hex'"),
    ],
)
def test_errors(task: Task, fields: dict[str, Any], param: str, message: str, start: Start) -> None:
    response = start(task).client.post("/pooling", json={"input": "a", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert message in error["message"]


@pytest.mark.parametrize("activated", [None, True, False])
def test_vectors_of_tokens(activated: bool | None, start: Start) -> None:
    """Normalized unless the request says otherwise, as the model's vectors are."""
    model, tokenizer = AutoModel.from_pretrained(MINILM), AutoTokenizer.from_pretrained(MINILM)
    body = {"input": TEXTS, "task": "token_embed", "use_activation": activated}
    answer = start(Task.TEXT_EMBEDDING).client.post("/pooling", json=body).json()
    for found, text in zip(answer["data"], TEXTS, strict=True):
        with torch.no_grad():
            [hidden] = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        expected = hidden if activated is False else torch.nn.functional.normalize(hidden, dim=-1)
        np.testing.assert_allclose(found["data"], expected, atol=1e-5)


def test_dimensions(start: Start) -> None:
    answer = start(Task.TEXT_EMBEDDING).client.post("/pooling", json={"input": TEXTS, "dimensions": 7}).json()
    reference = SentenceTransformer(str(MINILM), device="cpu")
    expected = reference.encode(TEXTS, truncate_dim=7, normalize_embeddings=True)
    np.testing.assert_allclose([each["data"] for each in answer["data"]], expected, atol=1e-5)


def test_a_model_without_normalization(model_folder: ModelFolder, serve: Serve, tmp_path: Path) -> None:
    folder = save_embedder(tmp_path / "model", model_folder("bert", "text_embedding"))
    client = serve(model_dir=folder).client
    bodies = [{"input": TEXTS, **named} for named in ({}, {"use_activation": False}, {"use_activation": True})]
    for path, name in (("/pooling", "data"), ("/v1/embeddings", "embedding")):
        own, same, unit = (
            np.array([each[name] for each in client.post(path, json=body).json()["data"]]) for body in bodies
        )
        np.testing.assert_allclose(own, SentenceTransformer(str(folder), device="cpu").encode(TEXTS), atol=1e-5)
        np.testing.assert_array_equal(own, same)
        np.testing.assert_allclose(unit, own / np.linalg.norm(own, axis=1, keepdims=True), atol=1e-6)


def test_another_task(model_folder: ModelFolder, serve: Serve) -> None:
    response = serve(model_dir=model_folder("bert", "fill_mask")).client.post("/pooling", json={"input": "a"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("model does not serve /pooling: it serves fill_mask at")
