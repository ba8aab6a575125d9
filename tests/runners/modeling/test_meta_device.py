"""Models are loaded without PyTorch's compiler, and as they are with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from runners.modeling.meta_device import WithoutCompiler
from tests.conftest import ModelFolder
from tests.families import FAMILIES
from tests.servers import ROOT

_LOAD = """
import json, sys, threading
from runners.modeling.lean_imports import import_transformers
import_transformers()
from runners.core.arguments import Arguments
from runners.encoder.loader import load_encoder
from runners.modeling.devices import CPU
for folder in sys.argv[1:]:
    load_encoder(Arguments(model_dir=folder), None, threading.Condition(), CPU)
    print(json.dumps([name for name in ("sympy", "torch._dynamo") if name in sys.modules]))
"""


def test_an_encoder_is_loaded_without_the_compiler(model_folder: ModelFolder) -> None:
    """A fresh interpreter loads one family after another."""
    folders = [str(model_folder(family, "sequence_classification")) for family in FAMILIES]
    command = [sys.executable, "-c", _LOAD, *folders]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    imported = [json.loads(line) for line in shown.splitlines()]
    assert dict(zip(FAMILIES, imported, strict=True)) == {family: [] for family in FAMILIES}


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Embedding(3, 4).weight,
        lambda: torch.arange(5),
        lambda: torch.arange(0, 8, 2, dtype=torch.float32, device="cpu"),
        lambda: torch.arange(512).expand((1, -1)),
        lambda: torch.empty_like(torch.zeros(2, 3, dtype=torch.float16)),
        lambda: torch.empty_like(torch.zeros(2, 3), device="cpu", dtype=torch.int64),
        lambda: 1.0 / (10_000.0 ** (torch.arange(0, 8, 2, dtype=torch.float) / 8)),
        lambda: torch.arange(4) / torch.full((2, 1), 2),
        lambda: nn.Linear(3, 4).weight,
    ],
)
def test_tensors_are_as_with_the_compiler(build: Callable[[], Tensor], device: str) -> None:
    with torch.device(device):
        expected = build()
        with WithoutCompiler():
            found = build()
    facts = [(each.shape, each.dtype, each.device, each.requires_grad, type(each)) for each in (expected, found)]
    assert facts[0] == facts[1]
    if "arange" in build.__code__.co_names and device == "cpu":
        assert torch.equal(found, expected)


def test_the_values_of_other_devices_are_drawn() -> None:
    torch.manual_seed(0)
    with WithoutCompiler():
        drawn = nn.Embedding(3, 4).weight
    torch.manual_seed(0)
    assert torch.equal(drawn, nn.Embedding(3, 4).weight)
