"""The folder of each parent process, and what it does where no folder can be made."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections import namedtuple
from pathlib import Path
from typing import IO, Any

import pytest

from runners.core.errors import ArgumentsError
from runners.hosting import metrics_folder
from runners.hosting.metrics_folder import VARIABLE, enter_metrics_folder, make_metrics_folder

PARENT = """
import os, sys
from runners.hosting.metrics_folder import make_metrics_folder
make_metrics_folder(os.environ)
print(os.environ["PROMETHEUS_MULTIPROC_DIR"], flush=True)
sys.stdin.read()
"""
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def only_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(metrics_folder, "_SHARED_MEMORY", str(tmp_path / "shared"))


def start_parent(place: Path) -> tuple[subprocess.Popen[str], Path]:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], env={**os.environ, VARIABLE: str(place)},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert parent.stdout is not None
    return parent, Path(parent.stdout.readline().strip())


def test_folders_of_killed_parents_are_removed_and_others_are_not(tmp_path: Path) -> None:
    killed, left = start_parent(tmp_path)
    living, other = start_parent(tmp_path)
    killed.kill()
    killed.wait()
    assert left.is_dir()
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    own = Path(environment[VARIABLE])
    assert {*tmp_path.glob("huggingface*")} == {own, other}
    living.communicate()
    assert not other.exists(), "a parent removes its folder when it ends"


def test_servers_that_start_together_keep_their_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one looks for stale folders at the moment in which this one locks its own."""
    flock = fcntl.flock

    def look_first(file: IO[bytes], operation: int) -> None:
        if not operation & fcntl.LOCK_NB:
            metrics_folder._remove_stale(tmp_path)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", look_first)
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).is_dir()
    metrics_folder._remove_stale(tmp_path)
    assert Path(environment[VARIABLE]).is_dir()


def test_a_worker_has_the_folder_of_its_parent() -> None:
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    own = environment[VARIABLE]
    environment[VARIABLE] = "BentoML's"
    enter_metrics_folder(environment)
    assert environment[VARIABLE] == own


def test_the_operators_folder_wins(tmp_path: Path) -> None:
    environment = {VARIABLE: str(tmp_path / "chosen")}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).parent == tmp_path / "chosen"


@pytest.mark.parametrize("free", [0, 2**20])
def test_a_full_disk_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Writing to a mapped file would kill the process."""

    def measure(place: Path) -> Any:
        return Usage(2**30, 0, free if place == tmp_path else 2**30)

    monkeypatch.setattr(shutil, "disk_usage", measure)
    environment: dict[str, str] = {}
    make_metrics_folder(environment)
    assert Path(environment[VARIABLE]).parent == tmp_path / "shared"


def test_without_a_folder_one_line_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 2**30, 2**20))
    with pytest.raises(ArgumentsError) as error:
        make_metrics_folder({})
    assert str(error.value) == (
        f"metrics need a folder: {tmp_path} has 1.0 MiB free, and 8 are needed; {tmp_path}/shared has 1.0 MiB free, "
        f"and 8 are needed. Set TMPDIR or {VARIABLE} to another one"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(ArgumentsError, match=r"file cannot be used \(File exists\)\. Set TMPDIR"):
        make_metrics_folder({VARIABLE: str(tmp_path / "file")})
