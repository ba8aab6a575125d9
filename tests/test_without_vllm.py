"""The base install: an environment of its dependencies and nothing else, so without vLLM."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import httpx
import openai
import pytest
from packaging.requirements import Requirement

from tests.families import MINILM
from tests.servers import ROOT, ServerProcess

pytestmark = pytest.mark.slow


def base_distributions() -> list[Distribution]:
    """What pyproject.toml's dependencies need, as it is installed here."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: dict[str, Distribution] = {}
    waiting = [Requirement(line) for line in declared]
    seen: set[tuple[str, frozenset[str]]] = set()
    while waiting:
        wanted = waiting.pop()
        if (key := (wanted.name.lower(), frozenset(wanted.extras))) in seen:
            continue
        seen.add(key)
        try:
            found[key[0]] = distribution(wanted.name)
        except PackageNotFoundError:
            continue
        for line in found[key[0]].requires or []:
            needed = Requirement(line)
            extras = [*wanted.extras, ""]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(needed)
    return list(found.values())


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of an environment with links to the base install's files."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, symlinks=True)
    packages = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    for each in base_distributions():
        for file in each.files or []:
            top = Path(str(file)).parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(Path(str(each.locate_file(top))).resolve())
    return str(folder / "bin/python")


@pytest.mark.parametrize(
    ("model", "backend", "message"),
    [
        ("smollm", "vllm", "error: cannot serve model: backend vllm cannot run {folder}: vLLM is not installed"),
        ("smollm", "auto", None),
        ("minilm", "auto", None),
    ],
)
def test_what_starts_without_vllm(
    python: str, smollm: Path, tmp_path: Path, model: str, backend: str, message: str | None
) -> None:
    folder = smollm if model == "smollm" else MINILM
    assert subprocess.run([python, "-c", "import vllm"], capture_output=True).returncode == 1
    arguments = ["--arg", f"model_dir={folder}", "--arg", f"backend={backend}"]
    server = ServerProcess([python, "-m", "bentoml", "serve", ".", "--port={port}", *arguments], tmp_path)
    try:
        if message is not None:
            assert server.wait_for_exit() == 1
            assert message.format(folder=folder) in server.output
            return
        server.wait_until("/v2/health/ready", 200)
        if model == "minilm":
            answer = httpx.post(f"{server.url}/v1/models/model:predict", json={"instances": ["Hello world"]})
            assert len(answer.json()["predictions"][0]) == 384
            return
        assert "transformers runs model, because vLLM is not installed" in server.output
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
        completion = client.completions.create(
            model="model", prompt="The capital of France is", temperature=0, max_tokens=2
        )
        assert completion.choices[0].text == " Paris."
    finally:
        server.terminate()
