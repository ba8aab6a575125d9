"""Clients that embed, rank and classify, and that nobody here wrote, unchanged, against a started server.

What they answer with is compared with sentence-transformers and `transformers`; `make test-clients` installs them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sentence_transformers import CrossEncoder, SentenceTransformer, quantize_embeddings
from transformers import AutoTokenizer, pipeline

from tests.clients.programs import needs_environment, run_client
from tests.clients.ranked_texts import DOCUMENTS, QUERY, TEXTS
from tests.conftest import ModelFolder
from tests.families import MINILM
from tests.servers import serve_models

GROUP = "clients"
# Infinity's client, and that of Text Embeddings Inference, need an older httpx.
OLDER_GROUP = "clients-infinity"

pytestmark = [pytest.mark.slow, pytest.mark.clients]


@dataclass(frozen=True)
class ServedModels:
    """A server of the models `minilm`, `ranker` and `classifier`, and what the libraries say of the texts."""

    url: str
    folders: dict[str, Path]
    home: Path

    def ask(self, module: str, group: str = GROUP) -> Any:
        """What a program of tests/clients says."""
        return run_client(group, module, [self.url, *self.folders], self.home)

    def embed(self, texts: list[str], **options: Any) -> NDArray[np.float32]:
        vectors: Any = SentenceTransformer(str(MINILM), device="cpu").encode(texts, **options)
        return np.asarray(vectors)

    def rank(self, documents: list[str]) -> list[float]:
        """The score of each document."""
        scores = CrossEncoder(str(self.folders["ranker"]), device="cpu").predict([(QUERY, text) for text in documents])
        return [float(score) for score in scores]

    def check_ranking(self, found: list[list[Any]], documents: list[str], best: int | None = None) -> None:
        """Compare pairs of place and score, best first."""
        scores = self.rank(documents)
        order = np.argsort(-np.array(scores), kind="stable").tolist()[:best]
        assert [index for index, _ in found] == order
        np.testing.assert_allclose([score for _, score in found], [scores[index] for index in order], atol=1e-5)


@pytest.fixture(scope="module")
def served(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModels]:
    home = tmp_path_factory.mktemp("clients")
    folders = {
        "minilm": MINILM,
        "ranker": model_folder("bert", "text_ranking"),
        "classifier": model_folder("bert", "sequence_classification"),
    }
    with serve_models(home, {name: {"model_dir": folder} for name, folder in folders.items()}) as server:
        yield ServedModels(server.url, folders, home)


@needs_environment(GROUP)
def test_cohere(served: ServedModels) -> None:
    said = served.ask("cohere_calls")
    expected = served.embed(TEXTS)
    kind, vectors, texts = said["embed"]["plain"]
    assert (kind, texts) == ("embeddings_floats", TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    kind, vectors, quantized = said["embed"]["typed"]
    assert kind == "embeddings_by_type"
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_array_equal(quantized, np.rint(np.array(vectors) * 127))
    short = served.embed(TEXTS, truncate_dim=16, normalize_embeddings=True)
    whole = said["embed"]["whole"]
    np.testing.assert_allclose(whole["float"], short, atol=1e-5)
    for name in ("binary", "ubinary"):
        np.testing.assert_array_equal(whole[name], quantize_embeddings(short, name))
    decoded = [np.frombuffer(base64.b64decode(each), "<f4") for each in whole["base64"]]
    np.testing.assert_allclose(decoded, short, atol=1e-5)
    np.testing.assert_allclose(np.array(whole["uint8"]) - 128, whole["int8"])
    np.testing.assert_allclose(said["embed"]["mixed"], expected, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    assert said["embed"]["tokens"] == sum(map(len, tokenizer(TEXTS)["input_ids"]))
    ids = tokenizer(TEXTS[0], add_special_tokens=False)["input_ids"]
    strings = tokenizer.convert_ids_to_tokens(ids)
    assert said["tokenize"] == {"tokens": ids, "strings": strings, "text": tokenizer.decode(ids)}
    assert said["async"]["tokens"] == ids
    np.testing.assert_allclose(said["async"]["embedded"], expected, atol=1e-5)
    assert said["error"] == {
        "message": "Model with name no does not exist. This server has minilm, ranker, classifier."
    }


@needs_environment(GROUP)
def test_cohere_ranks(served: ServedModels) -> None:
    ranked = served.ask("cohere_calls")["rerank"]
    places = {name: [[each["index"], each["relevance_score"]] for each in results] for name, results in ranked.items()}
    for name in ("first", "objects", "second"):
        served.check_ranking(places[name], DOCUMENTS)
    served.check_ranking(places["best"], DOCUMENTS, best=1)
    for each in ranked["objects"]:
        assert each["document"] == {"title": "x", "text": DOCUMENTS[each["index"]], "more": "y"}
    tokenizer = AutoTokenizer.from_pretrained(served.folders["ranker"])
    offsets = tokenizer(DOCUMENTS, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    served.check_ranking(places["cut"], [text[: each[2][1]] for text, each in zip(DOCUMENTS, offsets, strict=True)])


@needs_environment(GROUP)
def test_cohere_haystack(served: ServedModels) -> None:
    said = served.ask("cohere_haystack_calls")
    expected = served.embed([TEXTS[0], *DOCUMENTS])
    np.testing.assert_allclose(said["text"], expected[0], atol=1e-5)
    np.testing.assert_allclose(said["async"], expected[0], atol=1e-5)
    np.testing.assert_allclose(said["all"], np.rint(expected[0] * 127), atol=1)
    np.testing.assert_allclose(said["documents"], expected[1:], atol=1e-5)
    served.check_ranking([[DOCUMENTS.index(text), score] for text, score in said["ranked"]], DOCUMENTS)
    tokenizer = AutoTokenizer.from_pretrained(served.folders["ranker"])
    titled = [f"x\n{text}" for text in DOCUMENTS]
    offsets = tokenizer(titled, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    cut = [text[: each[7][1]] if len(each) > 8 else text for text, each in zip(titled, offsets, strict=True)]
    served.check_ranking([[DOCUMENTS.index(text), score] for text, score in said["titled"]], cut, best=1)


@needs_environment(GROUP)
def test_litellm(served: ServedModels) -> None:
    said = served.ask("litellm_rankings")
    expected, short = served.embed(TEXTS), served.embed(TEXTS, truncate_dim=16, normalize_embeddings=True)
    for provider, (plain, whole, asynchronous) in said["embed"].items():
        np.testing.assert_allclose(plain, expected, atol=1e-5)
        np.testing.assert_allclose(asynchronous, expected, atol=1e-5)
        if provider == "openai":
            whole = [np.frombuffer(base64.b64decode(each), "<f4") for each in whole]
        np.testing.assert_allclose(whole, expected if provider in ("openai", "huggingface") else short, atol=1e-5)
    for plain, whole, asynchronous in said["rerank"].values():
        served.check_ranking(plain, DOCUMENTS)
        served.check_ranking(asynchronous, DOCUMENTS)
        served.check_ranking(whole, DOCUMENTS, best=1)


@needs_environment(OLDER_GROUP)
def test_infinity(served: ServedModels) -> None:
    said = served.ask("infinity_calls", OLDER_GROUP)
    assert said["health"] == {"ready": True}
    assert [each["id"] for each in said["models"]] == [*served.folders]
    assert said["metrics"] == 200
    expected = served.embed(TEXTS)
    plain, whole, asynchronous = said["embeddings"]
    np.testing.assert_allclose(plain, expected, atol=1e-5)
    np.testing.assert_allclose(asynchronous, expected, atol=1e-5)
    np.testing.assert_allclose(whole, served.embed(TEXTS[:1], truncate_dim=16, normalize_embeddings=True), atol=1e-5)
    tokens = sum(map(len, AutoTokenizer.from_pretrained(MINILM)(TEXTS)["input_ids"]))
    assert said["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    ranked, best = said["rerank"]
    served.check_ranking([[each["index"], each["relevance_score"]] for each in ranked["results"]], DOCUMENTS)
    [first] = best["results"]
    assert first["document"] == DOCUMENTS[first["index"]]
    score = 1 / (1 + np.exp(-first["relevance_score"]))
    served.check_ranking([[first["index"], score]], DOCUMENTS, best=1)
    for answer, texts, function in zip(said["classify"], (TEXTS, TEXTS[:1]), ("softmax", "none"), strict=True):
        classify: Any = pipeline("text-classification", str(served.folders["classifier"]), top_k=None)
        for found, wanted in zip(answer["data"], classify(texts, function_to_apply=function), strict=True):
            assert [each["label"] for each in found] == [each["label"] for each in wanted]
            np.testing.assert_allclose([each["score"] for each in found], [each["score"] for each in wanted], atol=1e-5)


@needs_environment(OLDER_GROUP)
def test_tei_client(served: ServedModels) -> None:
    said = served.ask("tei_calls", OLDER_GROUP)
    assert (said["health"], said["metrics"]) == (200, 200)
    expected = served.embed(TEXTS)
    np.testing.assert_allclose(said["text"], expected[:1], atol=1e-5)
    for name in ("texts", "async"):
        np.testing.assert_allclose(said[name], expected, atol=1e-5)
    tokens = len(AutoTokenizer.from_pretrained(MINILM)("word " * 2000)["input_ids"])
    assert said["refused"] == [
        422,
        {
            "error": f"text 0 cannot be served: it has {tokens} tokens, the model takes 256, and truncation is false",
            "error_type": "Validation",
        },
    ]
    # No client of it can name a model.
    assert said["info"]["error_type"] == "Validation"
