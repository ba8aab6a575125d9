"""Every command of the README is run, and what it says comes out does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runners.core.arguments import LimitArguments
from tests.servers import ROOT, ServerProcess
from tools.argument_tables import describe_arguments

README = (ROOT / "README.md").read_text()
_BLOCK = re.compile(r"^```(sh|json|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str]]:
    return [(kind, text.strip()) for kind, text in _BLOCK.findall(README)]


def questions() -> list[tuple[str, str, str]]:
    """(the command that starts the server, a curl command or a program, its output)."""
    found, server = [], ""
    for (kind, text), (_, following) in zip(blocks(), [*blocks()[1:], ("", "")], strict=True):
        if kind == "sh" and text.startswith("make serve"):
            server = text
        elif kind == "python" or (kind == "sh" and text.startswith("curl")):
            found.append((server, text, following))
    return found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    """The server of one README section at a time."""
    running: dict[str, ServerProcess] = {}
    yield running
    for server in running.values():
        server.terminate()


@pytest.mark.slow
def test_demo() -> None:
    assert ("sh", "make demo") in blocks()
    subprocess.run(["make", "demo"], cwd=ROOT, check=True)
    for task in ("sentiment", "minilm", "token_classification", "fill_mask", "smollm"):
        assert (ROOT / "demo/models" / task / "model.safetensors").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("command", [text for kind, text in blocks() if kind == "sh" and text.startswith("make bento")])
def test_bentos(command: str, tmp_path: Path) -> None:
    environment = {**os.environ, "BENTOML_HOME": str(tmp_path)}
    printed = subprocess.run(
        ["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    # A make that calls this one says where it is.
    [tag] = re.findall(r"^huggingface-runtime-\S+$", printed, re.MULTILINE)
    assert (tmp_path / "bentos" / Path(*tag.split(":")) / "bento.yaml").is_file()


@pytest.mark.slow
@pytest.mark.parametrize(("start", "question", "answer"), questions())
def test_questions(
    start: str, question: str, answer: str, servers: dict[str, ServerProcess], tmp_path_factory: pytest.TempPathFactory
) -> None:
    if start not in servers:
        for stopped in list(servers):
            servers.pop(stopped).terminate()
        servers[start] = ServerProcess(start, tmp_path_factory.mktemp("home"))
        servers[start].wait_until("/v2/health/ready", 200, seconds=300)
    command = question.replace("localhost:3000", f"localhost:{servers[start].port}")
    command = command.replace("localhost:8081", f"localhost:{servers[start].grpc_port}")
    shell = ["bash", "-c"] if command.startswith("curl") else [sys.executable, "-c"]
    printed = subprocess.run([*shell, command], capture_output=True, text=True, check=True).stdout
    assert_alike(json.loads(printed), json.loads(answer))


def assert_alike(found: Any, expected: Any) -> None:
    """Equal but for the last digits of floats, which are the machine's, and what the README leaves out of long lists."""
    match expected:
        case dict():
            assert list(found) == list(expected)
            for key, value in expected.items():
                assert_alike(found[key], value)
        case [*beginning, str(rest)] if rest.startswith("... "):
            assert len(found) == int(rest.split()[1])
            assert_alike(found[: len(beginning)], beginning)
        case list():
            assert len(found) == len(expected)
            for one, wanted in zip(found, expected, strict=True):
                assert_alike(one, wanted)
        case float():
            assert found == pytest.approx(expected, abs=0.02 if 0 <= expected == round(expected, 4) else 1e-5)
        case _:
            assert found == expected


def test_the_table_of_arguments_is_complete() -> None:
    assert describe_arguments() in README, f"`make arguments-table` writes it:\n{describe_arguments()}"


def test_the_table_of_limits_is_complete() -> None:
    page = (ROOT / "docs" / "limits.md").read_text()
    for name, field in LimitArguments.model_fields.items():
        assert f"\n| `{name}` | `{field.default}` | {field.description} | " in page, name


def test_ci_runs_the_command_of_the_readme() -> None:
    assert ("sh", "make test") in blocks()
    script = ROOT / ".ci" / "run"
    assert script.read_text().splitlines()[-1] == "exec make test"
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links(page: str) -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
