"""Programs that measure servers of OpenAI's API, unchanged, against a started server: no request of theirs may fail."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ModelFolder
from tests.families import MINILM
from tests.servers import ROOT, serve_models

# They need GBs of their own; `make test-clients-bench` installs them.
PROGRAMS = ROOT / ".venv-clients-bench" / "bin"
REQUESTS = 3

pytestmark = [pytest.mark.slow, pytest.mark.clients]


@dataclass(frozen=True)
class ServedModels:
    """A server of the models `smollm`, `minilm` and `ranker`."""

    url: str
    folders: dict[str, Path]


@pytest.fixture(scope="module")
def served(smollm: Path, model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedModels]:
    home = tmp_path_factory.mktemp("benchmarks")
    folders = {"smollm": smollm, "minilm": MINILM, "ranker": model_folder("bert", "text_ranking")}
    models = {name: {"model_dir": folder, "backend": "huggingface"} for name, folder in folders.items()}
    with serve_models(home, models) as server:
        yield ServedModels(server.url, folders)


def run(words: list[str], folder: Path, offline: bool = True) -> str:
    """What a program prints."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"} if offline else {**os.environ}
    if not offline:
        environment.pop("HF_HUB_OFFLINE", None)
    ran = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, timeout=300, check=False,
        env=environment | {"PYTHONPATH": str(ROOT), "HF_HOME": str(folder / "hub")},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    return ran.stdout


def find_program(name: str) -> str:
    program = PROGRAMS / name
    if not program.exists():
        pytest.skip(f"{name} is not installed: make test-clients-bench installs it")
    return str(program)


TEXTS = ["--dataset-name=random", "--random-input-len=16", "--random-output-len=6"]
PAIRS = ["--dataset-name=random-rerank", "--random-input-len=60", "--random-batch-size=2"]
SAMPLING = [
    "--logprobs=2", "--temperature=0.5", "--top-p=0.9", "--top-k=10", "--min-p=0.1", "--frequency-penalty=0.1",
    "--presence-penalty=0.1", "--repetition-penalty=1.1", "--ignore-eos",
]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make vllm installs it")
@pytest.mark.parametrize(
    ("backend", "endpoint", "model", "options"),
    [
        ("openai", "/v1/completions", "smollm", [*TEXTS, *SAMPLING]),
        ("openai-chat", "/v1/chat/completions", "smollm", [*TEXTS, "--ready-check-timeout-sec=30"]),
        ("openai-responses", "/v1/responses", "smollm", TEXTS),
        ("openai-embeddings", "/v1/embeddings", "minilm", TEXTS),
        ("infinity-embeddings", "/embeddings", "minilm", TEXTS),
        ("vllm-pooling", "/pooling", "minilm", TEXTS),
        ("vllm-rerank", "/rerank", "ranker", PAIRS),
    ],
)
def test_vllm_bench(
    backend: str, endpoint: str, model: str, options: list[str], served: ServedModels, tmp_path: Path
) -> None:
    words = [
        sys.executable,
        "-m",
        "tests.clients.vllm_bench",
        "serve",
        f"--base-url={served.url}",
        f"--backend={backend}",
    ]
    asked = [f"--endpoint={endpoint}", f"--model={model}", f"--tokenizer={served.folders[model]}"]
    printed = run([*words, *asked, f"--num-prompts={REQUESTS}", *options], tmp_path)
    [succeeded], [failed] = (re.findall(rf"{name} requests: +(\d+)", printed) for name in ("Successful", "Failed"))
    assert int(failed) == 0
    # A request of a ranking has several documents.
    assert int(succeeded) == REQUESTS if model != "ranker" else int(succeeded) > 0


@pytest.mark.parametrize(
    ("form", "model"),
    [
        ("/v1/chat/completions", "smollm"),
        ("/v1/completions", "smollm"),
        ("/v1/responses", "smollm"),
        ("/v1/embeddings", "minilm"),
    ],
)
def test_guidellm(form: str, model: str, served: ServedModels, tmp_path: Path) -> None:
    """It asks /health first."""
    words = [
        find_program("guidellm"), "run", f"--backend=kind=openai_http,target={served.url},model={model},request_format={form}",
        "--profile=kind=concurrent,streams=2", f"--constraint=kind=max_requests,count={REQUESTS}",
        f"--tokenizer=kind=hf_auto,model={served.folders[model]}", "--data=kind=synthetic_text,prompt_tokens=16,output_tokens=6",
        "--output=kind=json,path=report.json", "--disable-console",
    ]  # fmt: skip
    run(words, tmp_path)
    [benchmark] = json.loads((tmp_path / "report.json").read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["errored"] == 0
    # On a busy machine it once reported 2 of 3 requests, with no error.
    assert totals["successful"] >= REQUESTS - 1


@pytest.mark.parametrize(
    ("kind", "model", "options"),
    [
        ("chat", "smollm", ["--streaming", "--use-server-token-count", "--per-chunk-usage"]),
        ("completions", "smollm", ["--streaming"]),
        ("responses", "smollm", ["--streaming"]),
        ("embeddings", "minilm", []),
        ("cohere-rankings", "ranker", []),
        ("hf-tei-rankings", "ranker", []),
    ],
)
def test_aiperf(kind: str, model: str, options: list[str], served: ServedModels, tmp_path: Path) -> None:
    """It reads /metrics too."""
    words = [
        find_program("aiperf"), "profile", f"--url={served.url}", f"--endpoint-type={kind}", f"--model={model}",
        f"--tokenizer={served.folders[model]}", f"--request-count={REQUESTS}", "--concurrency=2", "--ui=none",
        "--artifact-dir=out", "--wait-for-model-timeout=30", "--wait-for-model-mode=models",
    ]  # fmt: skip
    if model == "smollm":
        words += ["--synthetic-input-tokens-mean=16", "--output-tokens-mean=6"]
    # Offline it takes no folder for a tokenizer.
    run([*words, *options], tmp_path, offline=False)
    [report] = tmp_path.glob("out/**/profile_export_aiperf.json")
    found = json.loads(report.read_text())
    assert found["request_count"]["avg"] == REQUESTS
    assert not found.get("error_summary")
