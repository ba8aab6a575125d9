"""A pytest plugin for vLLM's own tests: `tests.utils.RemoteOpenAIServer` is a server that already runs, at SUITE_URL,
and `tests.conftest.HfRunner` the reference, sentence-transformers.

Tests that SUITE_LEFT_OUT names, with spaces between the names, do not run: functions, or one of a function's tests.

It stands where vLLM's own class would start vLLM from the model's name and vLLM's flags.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, Self

import openai
import pytest
from sentence_transformers import CrossEncoder, SentenceTransformer


class RemoteOpenAIServer:
    """As vLLM's class of this name, as far as the tests use it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.url_root = os.environ["SUITE_URL"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *(part.strip("/") for part in parts)))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url_for("v1"), api_key="none", max_retries=0, **options)


class HfRunner:
    """As vLLM's class of this name, as far as the tests use it: the model that the server serves."""

    def __init__(
        self, name: str, dtype: str = "auto", is_sentence_transformer: bool = False, is_cross_encoder: bool = False
    ) -> None:
        kind: Any = CrossEncoder if is_cross_encoder else SentenceTransformer
        self._model = kind(name, device="cpu")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def encode(self, texts: list[str]) -> Any:
        return self._model.encode(texts)

    def predict(self, pairs: list[list[str]]) -> Any:
        return self._model.predict(pairs, convert_to_tensor=True)


@pytest.fixture(scope="session")
def hf_runner() -> type[HfRunner]:
    return HfRunner


def pytest_configure(config: pytest.Config) -> None:
    utils = ModuleType("tests.utils")
    utils.__dict__["RemoteOpenAIServer"] = RemoteOpenAIServer
    sys.modules["tests.utils"] = utils
    conftest = ModuleType("tests.conftest")
    conftest.__dict__["HfRunner"] = HfRunner
    sys.modules["tests.conftest"] = conftest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = os.environ["SUITE_LEFT_OUT"].split()
    items[:] = [item for item in items if not {item.name, getattr(item, "originalname", "")} & {*left_out}]
