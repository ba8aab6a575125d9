"""schemathesis against started servers: they answer as their OpenAPI document says, whatever they are asked.

`SCHEMATHESIS_EXAMPLES=300` makes a longer run of it, with all of schemathesis' phases for both servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest

from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import BENTOML, ROOT, ServerProcess, free_port

pytestmark = pytest.mark.slow

EXAMPLES = os.environ.get("SCHEMATHESIS_EXAMPLES")
KEY = "secret"
# A 501 by KServe's contract, and what would take the model away: both are asked below.
EXPLAIN, UNLOAD = "/v1/models/{name}:explain", "/v2/repository/models/{name}/unload"
# See tests/documents/README.md.
TEI_DOCUMENT = ROOT / "tests" / "documents" / "tei_openapi.json"
CONFIGURATION = ROOT / "tests" / "documents" / "schemathesis.toml"
# Text Embeddings Inference's paths that an embedder answers.
TEI = "/(embed|embed_all|similarity|tokenize|decode|info)$"
EXCLUDED = (EXPLAIN, UNLOAD, UNLOAD.replace("repository", "repository/{repository}"))

# No schema says that a tensor's shape is that of its data, or which tokens there are.
EXCLUDED_CHECKS = ("positive_data_acceptance",)


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


@pytest.fixture(scope="module")
def sparse(home: Path, model_folder: ModelFolder) -> Iterator[ServerProcess]:
    folder = model_folder("bert", "fill_mask")
    yield from _serve(home, [f"model_dir={folder}", "task=sparse_embedding", "max_active_dims=20"], {})


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
    run_schemathesis(embedder, tmp_path, f"--include-path-regex=/v1/(embeddings|models|pooling|score)|{TEI}|^/$")


def test_sparse_vectors_are_as_their_document_says(sparse: ServerProcess, tmp_path: Path) -> None:
    run_schemathesis(sparse, tmp_path, "--include-path-regex=:predict|/models/{name}/infer|/embed_sparse$")


def test_ranking_is_as_its_document_says(ranker: ServerProcess, tmp_path: Path) -> None:
    run_schemathesis(ranker, tmp_path, "--include-path-regex=/(rank|rerank|score|predict)$")


def test_tasks_of_several_sequences_are_as_their_documents_say(reader: ServerProcess, tmp_path: Path) -> None:
    """What is asked and answered: the other routes are those of any encoder."""
    run_schemathesis(
        reader,
        tmp_path,
        "--include-path-regex=:predict|/models/{name}/infer|^/models/{name}$|/bentoml/(answer|classify_zero_shot)",
    )


def test_a_generator_is_as_its_document_says(generator: ServerProcess, tmp_path: Path) -> None:
    # The other phases ask it thousands of times.
    options = [] if EXAMPLES else ["--phases=examples,fuzzing"]
    run_schemathesis(generator, tmp_path, "-H", f"Authorization: Bearer {KEY}", *options)


# What Text Embeddings Inference's own document has: the fixture of the model, the paths, and a check that is left out.
# `/v1/embeddings` is not among them: that path is OpenAI's here, and so are the forms of its errors.
TEI_CASES = [
    ("embedder", "embed|embed_all|similarity|decode|info|health|metrics", None),
    ("sparse", "embed_sparse|info", None),
    ("encoder", "info", None),
    # To that server's code `["a"]` is a single text (PredictInput in router/src/http/types.rs); its document has no
    # such form.
    ("encoder", "predict", "negative_data_rejection"),
    ("ranker", "rerank|info", None),
]


@pytest.mark.parametrize(("served", "paths", "excluded"), TEI_CASES)
def test_tei_s_own_document(
    served: str, paths: str, excluded: str | None, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    server: ServerProcess = request.getfixturevalue(served)
    checks = [*EXCLUDED_CHECKS, excluded] if excluded else EXCLUDED_CHECKS
    run_schemathesis(server, tmp_path, f"--include-path-regex=^/({paths})$", document=TEI_DOCUMENT, excluded=checks)


def test_the_path_that_tei_s_document_shares_with_vllm(embedder: ServerProcess, tmp_path: Path) -> None:
    """Of a body without a field of either, nobody can say in whose form its error is to be."""
    run_schemathesis(embedder, tmp_path, "--include-path=/tokenize", "--mode=positive", document=TEI_DOCUMENT)


def run_schemathesis(
    server: ServerProcess,
    folder: Path,
    *options: str,
    document: Path | None = None,
    excluded: Sequence[str] = EXCLUDED_CHECKS,
) -> None:
    """Run all of its checks but the excluded ones.

    Args:
        document: the document of another server; None for this one's.
    """
    location = [f"{server.url}/openapi.json"] if document is None else [str(document), f"--url={server.url}"]
    command = [
        sys.executable, "-m", "schemathesis.cli", f"--config-file={CONFIGURATION}", "run", *location,
        "--checks=all", f"--exclude-checks={','.join(excluded)}",
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
