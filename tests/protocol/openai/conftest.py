from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import openai
import pytest
from starlette.testclient import TestClient

from tests.conftest import GeneratorFolder, Serve


@pytest.fixture(scope="package")
def chat_folder(generator_folder: GeneratorFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llama with a chat template, and room for schemas: its positions are rotated, not learned."""
    folder = tmp_path_factory.mktemp("chat") / "llama"
    shutil.copytree(generator_folder("llama"), folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return folder


@pytest.fixture(scope="module")
def http(chat_folder: Path, serve: Serve) -> TestClient:
    return serve(model_dir=chat_folder, backend="huggingface", model_name="llama").client


@pytest.fixture(scope="module")
def client(http: TestClient) -> openai.OpenAI:
    return openai.OpenAI(base_url="http://testserver/v1", api_key="none", http_client=http, max_retries=0)
