"""schemathesis against started servers: they answer as their OpenAPI document says, whatever they are asked.

`SCHEMATHESIS_EXAMPLES=300` makes a longer run of it, with all of schemathesis' phases for both servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import BENTOML, ServerProcess, free_port

pytestmark = pytest.mark.slow

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES")
KEY = "secret"
# A 501 by KServe's contract, and what would take the model away: both are asked below.
EXPLAIN, UNLOAD = "/v1/models/{name}:explain", "/v2/repository/models/{name}/unload"
EXCLUDED = (EXPLAIN, UNLOAD, UNLOAD.replace("repository", "repository/{repository}"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def encoder(home: Path, model_folder: ModelFolder) -> Iterator[ServerProcess]:
    yield from _serve(
        home, [f"model_dir={model_folder('bert', 'sequence_classification')}", "enable_repository=true"], {}
    )


@pytest.fixture(scope="module")
def embedder(home: Path, model_folder: ModelFolder) -> Iterator[ServerProcess]:
    yield from _serve(home, [f"model_dir={model_folder('bert', 'text_embedding')}"], {})


@pytest.fixture(scope="module")
def ranker(home: Path, model_folder: ModelFolder) -> Iterator[ServerProcess]:
    yield from _serve(home, [f"model_dir={model_folder('bert', 'text_ranking')}"], {})


@pytest.fixture(scope="module", params=["question_answering", "zero_shot_classification"])
def reader(request: pytest.FixtureRequest, home: Path, model_folder: ModelFolder) -> Iterator[ServerProcess]:
    yield from _serve(home, [f"model_dir={model_folder('bert', request.param)}"], {})


@pytest.fixture(scope="module")
def generator(home: Path, generator_folder: GeneratorFolder) -> Iterator[ServerProcess]:
    """With a key, and so short a context that schemathesis' requests for 128 choices do not take long."""
    arguments = [f"model_dir={generator_folder('llama')}", "backend=huggingface", "max_length=32"]
    yield from _serve(home, arguments, {"RUNTIME_API_KEY": KEY})


def _serve(home: Path, arguments: list[str], environment: dict[str, str]) -> Iterator[ServerProcess]:
    words = [word for argument in arguments for word in ("--arg", argument)]
    environment |= {"RUNTIME_GRPC_PORT": str(free_port())}
    server = ServerProcess([*BENTOML, "serve", ".", "--port={port}", *words], home, environment)
    try:
        server.wait_until("/v2/health/ready", 200)
        yield server
    finally:
        server.terminate()


def test_an_encoder_is_as_its_document_says(encoder: ServerProcess, tmp_path: Path) -> None:
    run_schemathesis(encoder, tmp_path)


def test_embeddings_are_as_their_document_says(embedder: ServerProcess, tmp_path: Path) -> None:
    """The routes of OpenAI's API and of its own: the others are those of any encoder."""
    run_schemathesis(embedder, tmp_path, "--include-path-regex=/v1/(embeddings|models|pooling|score)|/embed$")


def test_ranking_is_as_its_document_says(ranker: ServerProcess, tmp_path: Path) -> None:
    run_schemathesis(ranker, tmp_path, "--include-path-regex=/(rank|rerank|score|predict)$")


def test_tasks_of_several_sequences_are_as_their_documents_say(reader: ServerProcess, tmp_path: Path) -> None:
    """What is asked and answered: the other routes are those of any encoder."""
    run_schemathesis(
        reader, tmp_path, "--include-path-regex=:predict|/models/{name}/infer|/bentoml/(answer|classify_zero_shot)"
    )


def test_a_generator_is_as_its_document_says(generator: ServerProcess, tmp_path: Path) -> None:
    # The other phases ask it thousands of times.
    options = [] if EXAMPLES else ["--phases=examples,fuzzing"]
    run_schemathesis(generator, tmp_path, "-H", f"Authorization: Bearer {KEY}", *options)


def run_schemathesis(server: ServerProcess, folder: Path, *options: str) -> None:
    """Run all of its checks but one: that a tensor's shape is that of its data is nothing that a schema can say."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json",
        "--checks=all", "--exclude-checks=positive_data_acceptance",
        *(f"--exclude-path={path}" for path in EXCLUDED),
        f"--max-examples={EXAMPLES or 50}", "--seed=1", "--generation-database=none",
        "--continue-on-failure", "--request-timeout=60", "--warnings=off", "--no-color",
        *options,
    ]  # fmt: skip
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "Traceback" not in server.output


def test_what_schemathesis_leaves_out(encoder: ServerProcess) -> None:
    document = httpx.get(f"{encoder.url}/openapi.json").json()
    for path, status in {EXPLAIN: 501, **dict.fromkeys(EXCLUDED[1:], 200)}.items():
        assert str(status) in document["paths"][path]["post"]["responses"]
        url = path.replace("{name}", "model").replace("{repository}", "any")
        assert httpx.post(encoder.url + url, timeout=30).status_code == status
    assert httpx.get(f"{encoder.url}/v2/health/ready").status_code == 503
    assert httpx.get(f"{encoder.url}/openapi.json").json() == document
