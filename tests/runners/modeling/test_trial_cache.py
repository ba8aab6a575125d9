"""Trials are done once on a machine, whatever happens to the folder of their results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from runners.modeling import packed_linear, trial_cache
from runners.modeling.linear_kernels import KernelChoice, MKLKernel, OneDNNKernel
from runners.modeling.packed_linear import pack_linears
from runners.modeling.trial_cache import recall_or_try
from tests.servers import ROOT

KEY = {"trial": "test", "shape": [768, 3072]}
KERNELS = {"kernel": "MKL"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of results, which is not there yet; the one for temporary files is elsewhere."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    forget(monkeypatch)
    return tmp_path / "cache" / "huggingface-runtime"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another process knows: nothing but the files."""
    monkeypatch.setattr(trial_cache, "_known", {})


def parse(value: Any) -> Any:
    """The results here: a number, nothing, or the names of kernels."""
    if value is not None and not isinstance(value, int) and value != KERNELS:
        raise TypeError(f"{value!r} is no result")
    return value


def fail() -> None:
    raise AssertionError("the trial is done again")


def test_a_trial_is_done_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recall_or_try(KEY, lambda: KERNELS, parse) == KERNELS
    assert recall_or_try(KEY, fail, parse) == KERNELS
    forget(monkeypatch)
    assert recall_or_try(KEY, fail, parse) == KERNELS
    assert recall_or_try({**KEY, "shape": [768, 768]}, lambda: None, parse) is None
    assert len([*folder.iterdir()]) == 2


@pytest.mark.parametrize(("name", "value"), [("torch", "9.9"), ("version", "9.9"), ("cpu", "another")])
def test_another_machine_or_version_tries_again(
    name: str, value: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recall_or_try(KEY, lambda: 1, parse) == 1
    machine = {**trial_cache._describe_machine(), name: value}
    monkeypatch.setattr(trial_cache, "_describe_machine", lambda: machine)
    assert recall_or_try(KEY, lambda: 2, parse) == 2
    assert len([*folder.iterdir()]) == 2


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "null", "[" * 100_000, '{"key": "another", "result": 1}', '{"result": 1}',
        '{"key": KEY}', '{"key": KEY, "result": "one"}', '{"key": KEY, "result": NaN}', '{"key": KEY, "result": {}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_replaced(content: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recall_or_try(KEY, lambda: 1, parse)
    [path] = folder.iterdir()
    path.write_text(content.replace("KEY", json.dumps(json.loads(path.read_text())["key"])))
    forget(monkeypatch)
    assert recall_or_try(KEY, lambda: 2, parse) == 2
    assert json.loads(path.read_text())["result"] == 2
    assert [*folder.iterdir()] == [path]


@pytest.mark.parametrize("value", ["", "relative/cache", None])
def test_a_variable_without_a_folder_is_ignored(
    value: str | None, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.delenv("XDG_CACHE_HOME")
    if value is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    recall_or_try(KEY, lambda: 1, parse)
    assert len([*(folder.parent / ".cache" / folder.name).iterdir()]) == 1


def test_a_folder_that_cannot_be_made_is_replaced(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("a file")
    assert recall_or_try(KEY, lambda: 1, parse) == 1
    forget(monkeypatch)
    assert recall_or_try(KEY, fail, parse) == 1


def test_without_any_folder_a_process_still_remembers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.parent.write_text("a file")
    monkeypatch.setattr(tempfile, "tempdir", str(folder.parent))
    assert recall_or_try(KEY, lambda: 1, parse) == 1
    assert recall_or_try(KEY, fail, parse) == 1
    forget(monkeypatch)
    assert recall_or_try(KEY, lambda: 2, parse) == 2


def test_a_file_of_another_user_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recall_or_try(KEY, lambda: 1, parse)
    forget(monkeypatch)
    other = os.getuid() + 1
    [path] = folder.iterdir()
    if os.getuid() == 0:
        os.chown(path, other, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: other)
    assert recall_or_try(KEY, lambda: 2, parse) == 2


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir, partial(os.symlink, "/dev/zero")])
def test_what_is_no_file_is_not_read(make: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recall_or_try(KEY, lambda: 1, parse)
    forget(monkeypatch)
    [path] = folder.iterdir()
    path.unlink()
    make(path)
    assert recall_or_try(KEY, lambda: 2, parse) == 2


_PROCESS = """
import json, os, sys, time
from runners.modeling.trial_cache import recall_or_try
def try_out():
    time.sleep(0.5)
    return os.getpid()
print(recall_or_try({"trial": "together"}, try_out, int))
"""


def test_processes_that_try_together_choose_the_same(folder: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder.parent)}
    command = [sys.executable, "-c", _PROCESS]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    chosen = [process.communicate()[0] for process in started]
    assert len({*chosen}) == 1
    assert int(chosen[0]) in [process.pid for process in started]


def test_layers_get_the_kernel_of_an_earlier_load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(512, 512))
    rows = torch.ones(1, 4, 512)
    for kernel in (MKLKernel, OneDNNKernel):
        choice = KernelChoice(kernel, {48: 2.0})
        monkeypatch.setattr(packed_linear, "choose_kernel", Mock(return_value=choice))
        layers = nn.Sequential(*model)
        assert pack_linears(layers, partial(layers, rows), model(rows)) == (
            "linear layers packed for MKL, the largest 2.0 times at 48 rows as fast as a stock one"
        )
    [path] = folder.iterdir()
    assert json.loads(path.read_text())["result"] == {"kernel": "MKL", "speedups": {"48": 2.0}}
