"""`doctor`: what it says of a server that would serve, and of one that would not."""

from __future__ import annotations

import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import pytest

from runners.core.version import VERSION
from tests.conftest import GeneratorFolder, ModelFolder
from tests.servers import ROOT, free_port

pytestmark = pytest.mark.slow
TITLES = ["Server", "Machine", "Packages", "Folders and networks", "Models", "Result"]


def examine(*words: str, http_port: int = 0, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code and the report."""
    http, grpc = http_port or free_port(), free_port()
    done = subprocess.run(
        [sys.executable, "launch.py", *words, f"--http_port={http}", f"--grpc_port={grpc}"],
        cwd=ROOT, env=os.environ | dict(environment or {}), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def test_several_models_that_answer(
    model_folder: ModelFolder, generator_folder: GeneratorFolder, tmp_path: Path
) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        "backend: huggingface\nmodels:\n"
        f"  - {{name: mask/s, version: 3, model_dir: {model_folder('bert', 'fill_mask')}}}\n"
        f"  - {{name: tags, model_dir: {model_folder('bert', 'token_classification')}}}\n"
        f"  - {{name: chat, model_dir: {generator_folder('llama')}}}\n"
        "  - {name: later, load: false, model_dir: /nowhere}\n"
    )
    keys = {"RUNTIME_API_KEY": "hush-hush", "HF_TOKEN": "hf_secret", "HTTPS_PROXY": "http://me:pass@proxy:3128"}
    code, report = examine("doctor", f"--models_file={file}", "--workers=2", "--max_log_len=5", environment=keys)
    assert code == 0, report
    assert re.findall(r"^(\w.*)$", report, re.MULTILINE) == TITLES
    assert "keys are asked for, by api_key\n" in report
    assert "max_log_len in the command line has no effect: prompts are logged only with --log_inputs" in report
    assert "2 processes take each" in report
    for secret in ("hush-hush", "hf_secret", "me:pass"):
        assert secret not in report
    assert "HTTPS_PROXY is http://proxy:3128" in report
    assert re.search(r"task fill_mask, on this server's engine for encoders, \w+, float32\n", report)
    assert re.search(r"task text_generation, on transformers, \w+, float32\n", report)
    assert f"huggingface-runtime {VERSION}, Python {platform.python_version()}, bentoml {version('bentoml')}" in report
    assert f"torch {version('torch')}, transformers {version('transformers')}" in report
    kernels = re.findall(r"^    batches: [\w ]+, linear kernels: (.+)$", report, re.MULTILINE)
    assert len(kernels) == 3
    assert {name for each in kernels for name in each.split(", ")} <= {"MKL", "oneDNN", "oneDNN's convolution", "stock"}
    # Why, and how much memory.
    assert report.count("texts are run in packed batches: ") == 2
    assert "transformers runs chat, because backend is huggingface" in report
    assert len(re.findall(r"takes .* for its weights in float32 and .*; .* are free", report)) == 3
    for path in ("mask%2Fs/versions/3", "tags/versions/1", "chat/versions/1"):
        assert re.search(rf"answers /v2/models/{path}/infer in \d+ ms", report)
    assert "it is not loaded at start" in report
    assert report.endswith("Result\n  all is well: 3 models answer\n")


def test_every_reason_is_listed(model_folder: ModelFolder, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        f"models:\n  - {{name: good, model_dir: {model_folder('bert', 'text_embedding')}}}\n"
        "  - {name: bad, model_dir: /nowhere}\n"
    )
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, report = examine("--check", f"--models_file={file}", http_port=port)
    assert code == 1
    problems = report.rpartition("Result\n")[2].splitlines()
    assert problems == [
        "  2 problems:",
        f"  - port {port} cannot be used: Address already in use; set --http_port to another",
        "  - bad: there is no folder /nowhere: set --model_id to a hub id or a folder, or --model_dir to a folder",
    ]
    assert "answers /v2/models/good/versions/1/infer" in report


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--models_file=/none.yaml"], "/none.yaml cannot be read: No such file or directory"),
        (["--model_dir=/nowhere"], "model: there is no folder /nowhere: set"),
        (["--model_dir={model}", "--task=question_answering"], "model: the checkpoint lacks weights of BertForQuestionAnswering"),
        (["--model_dir={model}", "--predictor_host=127.0.0.1:9"], "model: /v2/models/model/versions/1/infer answers 503"),
    ],
)  # fmt: skip
def test_one_problem(words: list[str], problem: str, model_folder: ModelFolder) -> None:
    folder = str(model_folder("bert", "text_embedding"))
    code, report = examine("doctor", *(word.replace("{model}", folder) for word in words))
    assert code == 1
    assert f"Result\n  a problem:\n  - {problem}" in report


def test_a_predictor_is_named(model_folder: ModelFolder) -> None:
    folder = model_folder("bert", "text_embedding")
    _, report = examine("doctor", f"--model_dir={folder}", "--predictor_host=127.0.0.1:9")
    assert "task text_embedding, run by the predictor at 127.0.0.1:9 (v2)" in report


@pytest.mark.parametrize(
    "words",
    [
        ["doctor", "--modle_dir=/x"],
        # Only the first word is the command.
        ["doctor", "--model_name", "doctor", "--modle_dir=/x"],
        ["--check", "--model_name", "doctor", "--modle_dir=/x"],
    ],
)
def test_wrong_arguments_are_one_line(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "launch.py", *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: unknown argument 'modle_dir' in the command line: did you mean model_dir?\n"
