"""Text Embeddings Inference's vectors, against those of sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer import modules as models
from starlette.testclient import TestClient

from tests.conftest import ModelFolder, Serve
from tests.families import MINILM
from tests.protocol.tei.conftest import CheckError, Post

TEXTS = ["Hello world", "Serve Hugging Face models", "a long text " * 300]
SERVED = (
    "it serves text_embedding at /v1/models/minilm:predict, /v2/models/minilm/infer, /v1/embeddings, /v1/rerank, "
    "/v1/score, /v1/pooling"
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": True, "truncate": True, "truncation_direction": "Right"},
        # What Haystack's embedders send by default.
        {"normalize": False, "truncate": True, "truncation_direction": "Right", "prompt_name": None},
    ],
)
def test_embed(options: dict[str, Any], embedder: TestClient, post: Post) -> None:
    expected = SentenceTransformer(str(MINILM), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS, **options), expected, atol=1e-5)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS[0], **options), expected[:1], atol=1e-5)


def test_options_of_embed(embedder: TestClient, plain: Path, serve: Serve, post: Post) -> None:
    model = SentenceTransformer(str(MINILM), device="cpu")
    expected = model.encode(TEXTS, truncate_dim=16, normalize_embeddings=True)
    np.testing.assert_allclose(post(embedder, "/embed", inputs=TEXTS, dimensions=16), expected, atol=1e-5)
    np.testing.assert_allclose(
        post(embedder, "/embed", inputs=[[101, 7592, 2088, 102]]), model.encode(TEXTS[:1]), atol=1e-5
    )
    client, reference = serve(model_dir=plain).client, SentenceTransformer(str(plain), device="cpu")
    for normalize in (True, False):
        for prompt in (None, "query"):
            expected = reference.encode(TEXTS, prompt_name=prompt, normalize_embeddings=normalize)
            found = post(client, "/embed", inputs=TEXTS, normalize=normalize, prompt_name=prompt)
            np.testing.assert_allclose(found, expected, atol=1e-5)
            # Vectors are cut before they are scaled.
            found = post(client, "/embed", inputs=TEXTS, normalize=normalize, prompt_name=prompt, dimensions=7)
            expected = reference.encode(TEXTS, prompt_name=prompt, normalize_embeddings=normalize, truncate_dim=7)
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("prompt", [None, "query"])
def test_the_tokens_of_each_text(prompt: str | None, plain: Path, serve: Serve, post: Post) -> None:
    """Those that are pooled, special tokens among them."""
    reference = SentenceTransformer(str(plain), device="cpu")
    expected = reference.encode(TEXTS, prompt_name=prompt, output_value="token_embeddings")
    found = post(serve(model_dir=plain).client, "/embed_all", inputs=TEXTS, prompt_name=prompt)
    assert len(found) == len(TEXTS)
    for vectors, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(vectors, wanted.numpy(), atol=1e-4)
    tokens = reference.tokenizer("Hello world").input_ids
    [vectors] = post(serve(model_dir=plain).client, "/embed_all", inputs=tokens)
    [single] = post(serve(model_dir=plain).client, "/embed_all", inputs="Hello world")
    assert vectors == single


def test_the_tokens_of_a_model_with_dense_layers(
    model_folder: ModelFolder, serve: Serve, post: Post, tmp_path: Path
) -> None:
    """Its vectors are larger than those of its tokens."""
    transformer = models.Transformer(str(model_folder("bert", "text_embedding")))
    modules = [transformer, models.Pooling(32, "mean"), models.Dense(32, 50)]
    reference = SentenceTransformer(modules=modules, device="cpu")
    reference.save(str(tmp_path))
    client = serve(model_dir=tmp_path).client
    for found, expected in zip(
        post(client, "/embed_all", inputs=TEXTS), reference.encode(TEXTS, output_value="token_embeddings"), strict=True
    ):
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    # Texts with and without the vectors of tokens in one batch, over another protocol.
    expected = reference.encode(TEXTS)
    body = {
        "inputs": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": TEXTS}],
        "outputs": [{"name": "output-0"}, {"name": "token_embeddings"}],
    }
    vectors, tokens = client.post("/v2/models/model/infer", json=body).json()["outputs"]
    np.testing.assert_allclose(np.reshape(vectors["data"], vectors["shape"]), expected, atol=1e-5)
    assert tokens["shape"] == [3, 512, 32]


def test_as_many_numbers_as_an_answer_has(embedder: TestClient, serve: Serve, check_error: CheckError) -> None:
    client = serve(model_dir=MINILM, max_answer_numbers=2 * 4 * 384).client
    assert client.post("/embed_all", json={"inputs": ["Hello world"] * 2}).status_code == 200
    message = (
        f"{3 * 4 * 384} numbers of the answer, or scores of the vocabulary that it is made of, are more than the "
        f"{2 * 4 * 384} that --max_answer_numbers allows"
    )
    check_error(client, "/embed_all", {"inputs": ["Hello world"] * 3}, 413, message)
    assert client.post("/embed", json={"inputs": ["Hello world"] * 3}).status_code == 200


@pytest.mark.parametrize("inputs", [TEXTS, TEXTS[0]])
def test_embed_sparse(inputs: str | list[str], model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    folder = model_folder("bert", "fill_mask")
    texts = [inputs] if isinstance(inputs, str) else inputs
    expected = SparseEncoder(str(folder), device="cpu").encode(texts, convert_to_sparse_tensor=False).numpy()
    found = post(serve(model_dir=folder, task="sparse_embedding").client, "/embed_sparse", inputs=inputs)
    for entries, wanted in zip(found, expected, strict=True):
        dense = np.zeros_like(wanted)
        dense[[entry["index"] for entry in entries]] = [entry["value"] for entry in entries]
        np.testing.assert_allclose(dense, wanted, atol=2e-5)


@pytest.mark.parametrize("direction", ["left", "Left", "LEFT"])
def test_the_end_of_a_text(direction: str, model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    long, end = {"inputs": "x " * 600 + "y"}, {"inputs": "x " * 509 + "y"}
    bodies: dict[str, tuple[str, Any, Any]] = {
        "/embed": ("text_embedding", long, end),
        "/embed_all": ("text_embedding", long, end),
        "/embed_sparse": ("sparse_embedding", long, end),
        "/predict": ("sequence_classification", long, end),
        "/rerank": (
            "text_ranking",
            {"query": "a", "texts": ["x " * 600 + "y"]},
            {"query": "a", "texts": ["x " * 507 + "y"]},
        ),
    }
    for path, (task, body, kept) in bodies.items():
        client = serve(model_dir=model_folder("bert", task), task=task).client
        assert post(client, path, **body, truncation_direction=direction) == post(client, path, **kept)


def test_truncate(model_folder: ModelFolder, serve: Serve, post: Post) -> None:
    """False refuses what is too long, true cuts it, also where the operator would have it otherwise."""
    similarity = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS[1:]}}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "/embed": ("text_embedding", {"inputs": TEXTS}),
        "/embed_all": ("text_embedding", {"inputs": TEXTS}),
        "/embed_sparse": ("sparse_embedding", {"inputs": TEXTS}),
        "/similarity": ("text_embedding", similarity),
        "/predict": ("sequence_classification", {"inputs": [[text] for text in TEXTS]}),
        "/rerank": ("text_ranking", {"query": "x", "texts": TEXTS}),
    }
    for path, (task, body) in bodies.items():
        client, strict = (
            serve(model_dir=model_folder("bert", task), task=task, truncation=usual).client for usual in (True, False)
        )
        cuts, refuses = (
            {"parameters": {"truncate": each}} if path == "/similarity" else {"truncate": each}
            for each in (True, False)
        )
        expected = post(client, path, **body)
        assert post(client, path, **body, **cuts) == post(strict, path, **body, **cuts) == expected
        for response in (client.post(path, json={**body, **refuses}), strict.post(path, json=body)):
            assert (response.status_code, response.json()["error_type"]) == (422, "Validation")
            assert response.json()["error"].startswith("text 2 cannot be served: it has 90")


@pytest.mark.parametrize(
    ("path", "body", "status", "message", "kind"),
    [
        ("/embed", "{", 400, "the body is not valid JSON: Input data was truncated", "Validation"),
        ("/embed", "", 400, "the body is empty; it must be a JSON object", "Validation"),
        ("/embed", {}, 422, "the body is not as expected: Object missing required field `inputs`", "Validation"),
        ("/embed", {"inputs": []}, 400, "inputs must be a text, token ids, or a list of either, and not empty", "Empty"),
        ("/embed_all", {"inputs": ""}, 400, "inputs is empty; give at least a character or a token", "Empty"),
        ("/embed", {"inputs": ["x", ""]}, 400, "inputs[1] is empty; give at least a character or a token", "Empty"),
        ("/embed", {"inputs": ["x", [1]]}, 422,
         "inputs must be a text, token ids, or a list of either, and not empty", "Validation"),
        ("/embed", {"inputs": [[101, 102]], "prompt_name": "no"}, 422,
         "there is no prompt 'no': the model has none", "Validation"),
        ("/embed", {"inputs": "x", "dimensions": 0}, 422,
         "the body is not as expected: Expected `int` >= 1 - at `$.dimensions`", "Validation"),
        ("/embed", {"inputs": "x", "normalize": None}, 422,
         "the body is not as expected: Expected `bool`, got `null` - at `$.normalize`", "Validation"),
        ("/embed", {"inputs": "x", "dimensions": 999}, 422,
         "dimensions is 999; the model's vectors have 384", "Validation"),
        ("/embed_all", {"inputs": "x", "prompt_name": "no"}, 422,
         "there is no prompt 'no': the model has none", "Validation"),
        ("/embed", {"inputs": "x", "truncation_direction": "top"}, 422,
         "truncation_direction must be Left or Right, not 'top'", "Validation"),
        ("/embed", {"inputs": [[10**6]]}, 422,
         "text 0 cannot be served: 1000000 is none of the model's input_ids, which are 0 to 30521", "Validation"),
        ("/embed", {"inputs": "x" * 100_000}, 413,
         "the body has 100014 bytes; at most 100000 are allowed", "Validation"),
        ("/embed", {"inputs": ["x"] * 4097}, 413,
         "4097 texts are more than the 4096 that --max_client_batch_size allows", "Validation"),
        ("/predict", {"inputs": "x"}, 424, f"minilm does not serve /predict: {SERVED}", "Backend"),
        ("/embed_sparse", {"inputs": "x"}, 424, f"minilm does not serve /embed_sparse: {SERVED}", "Backend"),
    ],
)  # fmt: skip
def test_errors(
    path: str, body: Any, status: int, message: str, kind: str, embedder: TestClient, check_error: CheckError
) -> None:
    check_error(embedder, path, body, status, message, kind)
