"""The variable that PyTorch's allocator reads, and who gets it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from runners.core import allocator
from runners.core.allocator import inherit_default_allocator, prepare_allocator
from tests.servers import ROOT

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
OURS = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@pytest.fixture(autouse=True)
def _unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that what the test sets is undone.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(allocator, "_set_here", {})


def found() -> dict[str, str]:
    return {name: os.environ[name] for name in NAMES if name in os.environ}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, OURS),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_HIP_ALLOC_CONF": ""}, {"PYTORCH_HIP_ALLOC_CONF": ""}),
    ],
)
def test_the_operator_s_value_wins(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_allocator()
    assert found() == expected


@pytest.mark.parametrize(("given", "expected"), [({}, {}), (OURS, OURS)])
def test_vllm_s_processes_get_the_operator_s_value_only(
    given: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    prepare_allocator()
    prepare_allocator()
    inherit_default_allocator()
    assert found() == expected


@pytest.mark.parametrize(
    "runner",
    [
        "from runners.encoder.runner import EncoderRunner; EncoderRunner(Arguments())",
        "import asyncio; from runners.generator.runner import GeneratorRunner; "
        "asyncio.run(GeneratorRunner(Arguments(backend='huggingface')).load())",
    ],
)
def test_it_is_set_before_torch_is_loaded(runner: str) -> None:
    """By a hook on the import of torch, which reads the variable."""
    script = f"""
import importlib.abc, os, sys

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print(os.environ.get("PYTORCH_ALLOC_CONF"), flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
from runners.core.arguments import Arguments
{runner}
import torch
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == OURS["PYTORCH_ALLOC_CONF"]
