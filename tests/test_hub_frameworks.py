"""Frameworks whose classes call Hugging Face's servers, unchanged, against a started server.

What they answer with is compared with `transformers` and sentence-transformers; `make test-clients` installs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer

from tests.clients.hub_texts import PROMPT, QUERY, QUESTION, TEXTS
from tests.clients.programs import needs_environment, run_client
from tests.conftest import ModelFolder
from tests.embedders import save_embedder
from tests.reference import Reference
from tests.servers import serve_models

# They need an older huggingface_hub than the others.
GROUP = "clients-huggingface"

pytestmark = [pytest.mark.slow, pytest.mark.clients, needs_environment(GROUP)]


@dataclass(frozen=True)
class ServedModels:
    """A server of the models `chat`, `embedder` and `ranker`, by name."""

    url: str
    folders: dict[str, Path]
    home: Path

    def ask(self, module: str, *models: str) -> Any:
        """What a program of tests/clients says."""
        return run_client(GROUP, module, [self.url, *models], self.home, HF_HUB_OFFLINE="0")

    def embed(self, texts: list[str], normalize: bool) -> Any:
        model = SentenceTransformer(str(self.folders["embedder"]), device="cpu")
        return model.encode(texts, normalize_embeddings=normalize)

    def check_best(self, ranked: list[list[Any]]) -> None:
        """Compare the two texts that answer the query best, each with its score."""
        scores = CrossEncoder(str(self.folders["ranker"]), device="cpu").predict([(QUERY, text) for text in TEXTS])
        best = np.argsort(-scores)[:2].tolist()
        assert [text for text, _ in ranked] == [TEXTS[index] for index in best]
        np.testing.assert_allclose([score for _, score in ranked], scores[best], atol=1e-5)


@pytest.fixture(scope="module")
def embedder(model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own vectors have no fixed length."""
    return save_embedder(tmp_path_factory.mktemp("plain"), model_folder("bert", "text_embedding"))


@pytest.fixture(scope="module")
def served(
    smollm: Path, embedder: Path, model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServedModels]:
    home = tmp_path_factory.mktemp("clients")
    folders = {"chat": smollm, "embedder": embedder, "ranker": model_folder("bert", "text_ranking")}
    models = {name: {"model_dir": folder, "backend": "huggingface"} for name, folder in folders.items()}
    with serve_models(home, models) as server:
        yield ServedModels(server.url, folders, home)


@pytest.fixture(scope="module")
def reference(smollm: Path) -> Reference:
    return Reference(smollm)


def test_haystack(served: ServedModels, reference: Reference) -> None:
    said = served.ask("haystack_calls", "chat", "embedder")
    own, scaled = (served.embed(TEXTS, normalize) for normalize in (False, True))
    assert not np.allclose(own, scaled)
    for kind in ("text_embeddings_inference", "inference_endpoints"):
        for name in ("text", "async"):
            np.testing.assert_allclose(said[f"{kind} {name}"], own[0], atol=1e-5)
        np.testing.assert_allclose(said[f"{kind} documents False"], own, atol=1e-5)
        np.testing.assert_allclose(said[f"{kind} documents True"], scaled, atol=1e-5)
    served.check_best(said["ranked"])
    expected = reference.chat(QUESTION, 8)
    for kind in ("text_generation_inference", "inference_endpoints"):
        assert {said[f"{kind} {name}"] for name in ("chat", "reply", "stream")} == {expected}


def test_llama_index(served: ServedModels, reference: Reference) -> None:
    said = served.ask("llama_index_calls", "chat", "embedder")
    # They ask for no normalization, so that the protocol's default holds.
    expected = served.embed(TEXTS, True)
    for kind in ("", "tei ", "named tei "):
        for name in ("text", "query"):
            np.testing.assert_allclose(said[kind + name], expected[0], atol=1e-5)
        for name in ("texts", "async"):
            np.testing.assert_allclose(said[kind + name], expected, atol=1e-5)
    served.check_best(said["ranked"])
    chats = {said[name] for name in ("chat", "chat_stream", "chat_async", "completed_chat")}
    assert chats == {reference.chat(QUESTION, 8)}
    assert {said[name] for name in ("completed", "completed_stream", "completed_async")} == {
        reference.complete(PROMPT, 8)
    }


def test_langchain(served: ServedModels, reference: Reference) -> None:
    said = served.ask("langchain_endpoint_calls", "chat")
    expected = reference.complete(PROMPT, 8)
    assert {said[name] for name in ("completed", "streamed", "async")} == {expected}
    assert said["batch"] == [expected, expected]
    # It takes the stop string, with which the server's text ends, away.
    assert said["stopped"] == expected.partition("Par")[0]
    first, second = said["defaults"]
    assert first == second
    assert first
    assert {said[name] for name in ("chat", "chat_stream", "chat_async")} == {reference.chat(QUESTION, 8)}
    assert said["usage"]["output_tokens"] == 8
