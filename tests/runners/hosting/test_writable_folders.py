"""Servers of one user that start at once, where BENTOML_HOME cannot be written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runners.hosting.writable_folders import choose_folders

Choose = Callable[[str], Path]


@pytest.fixture
def choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Choose:
    """The folder that takes the place of an unwritable BENTOML_HOME of this name, which has models."""

    def choose(name: str) -> Path:
        home = tmp_path / "image" / name
        environment = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "BENTOML_HOME": str(home)}
        return Path(choose_folders(environment)["BENTOML_HOME"])

    for name in ("first", "second"):
        (tmp_path / "image" / name / "models").mkdir(parents=True)
    # Root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, _: "image" not in str(path))
    return choose


def test_the_stores_are_linked(choose: Choose, tmp_path: Path) -> None:
    folder = choose("first")
    assert folder.is_relative_to(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["models"]
    linked = (folder / "models").lstat()
    assert choose("first") == folder
    assert (folder / "models").lstat().st_ino == linked.st_ino, "a running server uses it"
    choose("second")
    assert (folder / "models").readlink() == tmp_path / "image" / "second" / "models"
    (tmp_path / "image" / "second" / "models").rmdir()
    choose("second")
    assert not (folder / "models").is_symlink()


def test_servers_that_start_at_once_do_not_disturb_each_other(choose: Choose) -> None:
    link = choose("first") / "models"
    ended = threading.Event()
    with ThreadPoolExecutor() as pool:
        is_always_there = pool.submit(watch, link, ended)
        try:
            list(pool.map(choose, ["first", "second"] * 200))
        finally:
            ended.set()
        assert is_always_there.result()


def watch(link: Path, ended: threading.Event) -> bool:
    """Whether the link leads to a folder all the time."""
    while not ended.is_set():
        if not link.is_dir():
            return False
    return True


def test_a_working_folder_that_was_removed(choose: Choose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert choose("first").is_dir()
