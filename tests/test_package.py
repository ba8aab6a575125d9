"""The package as `pip` builds and installs it: a wheel in a virtual environment that has no source folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement

from runners.core.version import VERSION
from tests.conftest import ModelFolder
from tests.servers import ROOT, ServerProcess

pytestmark = pytest.mark.slow
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMAND = "huggingface-runtime"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built of what git has, since pip leaves files in the folder that it builds in."""
    source, built = (tmp_path_factory.mktemp(name) for name in ("source", "built"))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(built)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel; a path file has the dependencies, which are gigabytes."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n")
    pip(folder, "install", "--quiet", "--no-deps", "--no-index", str(wheel))
    return folder


def pip(environment: Path, *words: str) -> str:
    command = [sys.executable, "-m", "pip", "--python", str(environment / "bin/python"), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def metadata(wheel: Path) -> Iterator[Message]:
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        yield Parser().parsestr(archive.read(name).decode())


def test_the_wheel_holds_the_server_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    code = {
        name for name in listed.splitlines() if name.startswith(("protocol/", "runners/")) and (ROOT / name).exists()
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == code | {"doctor.py", "launch.py", "predict.py", "service.py"}


def test_the_metadata_have_the_version_and_the_extras(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Version"]) == (PROJECT["name"], VERSION)
    requirements = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    extras = {"bulk", "cpu", "cuda", "ray", "storage", "tracing"}
    assert set(metadata.get_all("Provides-Extra", [])) == extras == {*PROJECT["optional-dependencies"]}
    for extra, lines in PROJECT["optional-dependencies"].items():
        asked = [each for each in requirements if each.marker is not None and each.marker.evaluate({"extra": extra})]
        assert [(each.name, each.specifier) for each in asked] == [(each.name, each.specifier) for each in map(Requirement, lines)]  # fmt: skip
    assert len([each for each in requirements if each.marker is None]) == len(PROJECT["dependencies"])


@pytest.mark.parametrize(
    ("extra", "package"),
    [
        ("bulk", "pyarrow"),
        ("ray", "ray"),
        ("storage", "kserve-storage"),
        ("tracing", "opentelemetry-exporter-otlp-proto-grpc"),
    ],
)
def test_the_extra_resolves(wheel: Path, environment: Path, extra: str, package: str) -> None:
    """Everything that it asks for is in the environment of the tests; the other extras are not, since they conflict."""
    report = pip(environment, "install", "--dry-run", "--no-index", f"{wheel}[{extra}]")
    assert package in report
    assert "Would install" not in report


@pytest.mark.install
@pytest.mark.parametrize(
    ("extra", "module"),
    [
        ("", "service"),
        ("[storage]", "kserve_storage"),
        ("[tracing]", "opentelemetry.exporter.otlp.proto.grpc"),
        ("[cpu]", "vllm"),
    ],
)
def test_it_installs_into_an_empty_environment(wheel: Path, tmp_path: Path, extra: str, module: str) -> None:
    """With the torch of these tests: the newest one may be a build for GPUs, which has gigabytes."""
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    pip(environment, "install", "--quiet", f"{wheel}{extra}", f"torch=={version('torch').partition('+')[0]}")
    printed = subprocess.run(
        [str(environment / "bin" / COMMAND), "--version"], capture_output=True, text=True, check=True
    )
    assert printed.stdout == f"{COMMAND} {VERSION}\n"
    subprocess.run([str(environment / "bin/python"), "-c", f"import {module}"], cwd=tmp_path, check=True)


def test_the_command_prints_the_version(environment: Path, tmp_path: Path) -> None:
    command = [str(environment / "bin" / COMMAND), "--version"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed == f"{COMMAND} {VERSION}\n"


def test_the_command_serves_from_any_folder(environment: Path, model_folder: ModelFolder, tmp_path: Path) -> None:
    """Paths are relative to that folder, whose own service.py is not taken for ours."""
    (tmp_path / "service.py").write_text("raise SystemExit('another service')")
    (tmp_path / "keys").write_text("secret")
    (tmp_path / "model").symlink_to(model_folder("bert", "sequence_classification"))
    words = ["--model_dir=model", "--model_name=m", "--api_key_file=keys", "--http_port={port}"]
    server = ServerProcess([str(environment / "bin" / COMMAND), *words], tmp_path, folder=tmp_path)
    try:
        server.wait_until("/v2/health/ready", 200)
        assert httpx.get(f"{server.url}/openapi.json").json()["info"]["version"] == VERSION
        assert httpx.get(f"{server.url}/v2").json()["version"] == VERSION
        body = {"instances": ["Hello world"]}
        assert httpx.post(f"{server.url}/v1/models/m:predict", json=body).status_code == 401
        headers = {"authorization": "Bearer secret"}
        answer = httpx.post(f"{server.url}/v1/models/m:predict", json=body, headers=headers)
        assert (answer.status_code, len(answer.json()["predictions"])) == (200, 1)
    finally:
        assert server.terminate() == 0


def test_a_start_that_fails(environment: Path, tmp_path: Path) -> None:
    """A start that fails ends with one line, as from the source folder."""
    server = ServerProcess(
        [str(environment / "bin" / COMMAND), "--model_dir=nowhere", "--http_port={port}"], tmp_path, folder=tmp_path
    )
    try:
        assert server.wait_for_exit() == 1
        assert "error: cannot serve model: there is no folder nowhere" in server.output
    finally:
        server.terminate()
