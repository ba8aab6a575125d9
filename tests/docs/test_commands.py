"""Every command of README.md and docs/ is run, and what it says comes out does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.demo_models import run_make_demo
from tests.docs.answers import assert_alike
from tests.docs.pages import Question, all_blocks, all_questions, server_key
from tests.servers import ROOT, ServerProcess

DEMO_MODELS = (
    "sentiment", "minilm", "token_classification", "fill_mask", "zero_shot_classification", "question_answering",
    "text_ranking", "translator", "smollm",
)  # fmt: skip
QUESTIONS = all_questions()
BENTOS = sorted({block.text for block in all_blocks() if block.text.startswith("make bento") and not block.reason})


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, ...], ServerProcess]]:
    """One server at a time, by its command; the questions come in the order of servers."""
    running: dict[tuple[str, ...], ServerProcess] = {}
    yield running
    for server in running.values():
        server.terminate()


@pytest.mark.slow
def test_demo() -> None:
    run_make_demo()
    for name in DEMO_MODELS:
        assert (ROOT / "demo/models" / name / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", BENTOS)
def test_bentos(command: str, tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path)}
    printed = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    # A make that calls this one says where it is.
    [tag] = re.findall(r"^huggingface-runtime-\S+$", printed, re.MULTILINE)
    assert (tmp_path / "bentos" / Path(*tag.split(":")) / "bento.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("question", QUESTIONS, ids=[f"{each.page}:{each.command.text[:60]}" for each in QUESTIONS])
def test_questions(
    question: Question,
    servers: dict[tuple[str, ...], ServerProcess],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    key = server_key(question.server)
    if key not in servers:
        for stopped in list(servers):
            servers.pop(stopped).terminate()
        servers[key] = start_server(key, tmp_path_factory.mktemp("home"))
    command = question.command.text.replace("localhost:3000", f"localhost:{servers[key].port}")
    command = command.replace("localhost:8081", f"localhost:{servers[key].grpc_port}")
    shell = ["bash", "-ec"] if question.command.language == "sh" else [sys.executable, "-c"]
    # huggingface_hub's client calls no server at all while it is offline.
    environment = {**os.environ, "HF_HUB_OFFLINE": "0"}
    printed = subprocess.run(
        [*shell, command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    if question.answer is not None:
        assert_alike(json.loads(printed), json.loads(question.answer))


def start_server(words: tuple[str, ...], home: Path) -> ServerProcess:
    """Start what a page says; variables may stand before the command, as in a shell."""
    environment = dict(word.split("=", 1) for word in words[: words.index("make")])
    server = ServerProcess(list(words[words.index("make") :]), home, environment)
    server.wait_until("/v2/health/ready", 200, seconds=300)
    return server


def test_ci_runs_the_command_of_the_readme() -> None:
    assert any(block.page == "README.md" and block.text == "make test" for block in all_blocks())
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == "exec make test"
    assert os.access(script, os.X_OK)
