"""The parent process, workers and builds, each of which imports the service in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.objects import ObjectStore, Web
from tests.servers import ROOT

CONTENT = b"models: [{model_dir: /x}]"
_LOCALIZE = """
import logging, sys
import click
from bentoml import server_context
from runners.core.errors import RunnerError
from runners.hosting.storage.declarations import localize_declarations
logging.basicConfig(format="%(message)s", level="INFO")
if sys.argv[1] == "worker":
    server_context.worker_index = 1
command = {"parent": "serve", "build": "build", "worker": "worker"}[sys.argv[1]]
with click.Context(click.Command(command), info_name=command):
    try:
        print(localize_declarations(sys.argv[2]))
    except RunnerError as error:
        sys.exit(f"error: {error}")
"""


class Localize:
    def __init__(self, cache: Path) -> None:
        self.environment = {"STORAGE_CACHE_DIR": str(cache), "STORAGE_ALLOW_PATTERNS": '["*.json"]'}

    def __call__(self, role: str, location: str) -> Path | None:
        done = self._run(role, location)
        assert done.returncode == 0, done.stderr
        found = done.stdout.strip()
        return None if found == "None" else Path(found)

    def fail(self, role: str, location: str) -> str:
        done = self._run(role, location)
        assert (done.returncode, done.stdout) == (1, "")
        return done.stderr.splitlines()[-1]

    def _run(self, role: str, location: str) -> subprocess.CompletedProcess[str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        return subprocess.run(
            [sys.executable, "-c", _LOCALIZE, role, location], cwd=ROOT, env=inherited | self.environment,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


@pytest.fixture
def localize(tmp_path: Path) -> Localize:
    return Localize(tmp_path / "cache")


@pytest.fixture
def web() -> Iterator[Web]:
    with Web({"/models.yaml": ("application/octet-stream", CONTENT)}) as running:
        yield running


def read(path: Path | None) -> bytes:
    assert path is not None
    return path.read_bytes()


def test_a_file_is_downloaded_at_every_start(localize: Localize, web: Web) -> None:
    uri = f"{web.url}/models.yaml?signature=secret"
    assert localize("build", uri) is None
    assert web.asked == []
    path = localize("parent", uri)
    assert path is not None
    assert path.name == "models.yaml"
    assert read(path) == CONTENT
    # All workers read that copy, whatever the server has by now.
    web.files["/models.yaml"] = ("application/octet-stream", b"models: []")
    assert localize("worker", uri) == path
    assert read(path) == CONTENT
    assert web.asked == ["/models.yaml"]
    assert read(localize("parent", uri)) == b"models: []"
    assert sorted(each.name.rpartition(".")[2] for each in path.parents[1].iterdir() if each != path.parent) == ["lock"]


def test_an_old_copy_is_not_used_if_the_download_fails(localize: Localize, web: Web) -> None:
    uri = f"{web.url}/models.yaml?signature=secret"
    path = localize("parent", uri)
    del web.files["/models.yaml"]
    error = localize.fail("parent", uri)
    assert error.startswith(f"error: {web.url}/models.yaml?... cannot be downloaded: ")
    assert "secret" not in error
    assert localize("worker", uri) == path


def test_a_file_in_s3(localize: Localize) -> None:
    with ObjectStore() as store:
        localize.environment |= store.environment
        folder = store.put("conf/", {"models.yaml": CONTENT, "models.yaml.old": b"old", "empty.yaml": b""})
        path = localize("parent", f"{folder}models.yaml")
        assert read(path) == CONTENT
        assert store.read == ["conf/models.yaml"]
        assert localize.fail("parent", f"{folder}models") == f"error: {folder}models is not a file"


@pytest.mark.parametrize("role", ["parent", "worker", "build"])
@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_path(role: str, prefix: str, localize: Localize, tmp_path: Path) -> None:
    path = tmp_path / "models.yaml"
    # A build may name a file that is mounted later.
    assert localize(role, f"{prefix}{path}") == (None if role == "build" else path)
    path.touch()
    assert localize(role, f"{prefix}{path}") == path


@pytest.mark.parametrize("role", ["parent", "worker", "build"])
def test_a_file_in_the_model_store(role: str, localize: Localize, tmp_path: Path) -> None:
    localize.environment["BENTOML_HOME"] = str(tmp_path)
    script = "import bentoml\nwith bentoml.models.create('rag:1') as model: open(model.path_of('rag.yaml'), 'w')"
    subprocess.run([sys.executable, "-c", script], env=os.environ | localize.environment, check=True)
    assert localize(role, "bentoml://rag:1/rag.yaml") == tmp_path / "models/rag/1/rag.yaml"
    for other in ("bentoml://rag:1", "bentoml://rag:1/other.yaml"):
        assert localize.fail(role, other) == (
            f"error: {other} must name a file of a model in BentoML's store, as in bentoml://name:version/models.yaml"
        )
    assert localize.fail(role, "bentoml://none:1/rag.yaml").startswith("error: bentoml://none:1 is not in BentoML's")


@pytest.mark.parametrize("uri", ["hf://owner/model", "ftp://host/models.yaml", "pvc://volume/models.yaml"])
def test_other_schemes(uri: str, localize: Localize) -> None:
    assert localize.fail("parent", uri) == (
        f"error: models_file is '{uri}': it must be a path or a URI of bentoml, file, gs, hdfs, http, https, s3, webhdfs"
    )
