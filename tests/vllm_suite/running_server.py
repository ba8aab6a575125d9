"""A pytest plugin for vLLM's own tests: `tests.utils.RemoteOpenAIServer` is a server that already runs, at SUITE_URL.

Tests that SUITE_LEFT_OUT names, with spaces between the names, do not run.

It stands where vLLM's own class would start vLLM from the model's name and vLLM's flags.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, Self

import openai
import pytest


class RemoteOpenAIServer:
    """As vLLM's class of this name, as far as the tests use it."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.url_root = os.environ["SUITE_URL"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def url_for(self, *parts: str) -> str:
        return "/".join((self.url_root, *parts))

    def get_async_client(self, **options: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url_for("v1"), api_key="none", max_retries=0, **options)


def pytest_configure(config: pytest.Config) -> None:
    utils = ModuleType("tests.utils")
    utils.__dict__["RemoteOpenAIServer"] = RemoteOpenAIServer
    sys.modules["tests.utils"] = utils


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = os.environ["SUITE_LEFT_OUT"].split()
    items[:] = [item for item in items if item.name not in left_out]
