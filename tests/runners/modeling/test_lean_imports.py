"""What `import_transformers` leaves out; each case is a fresh interpreter, because imports are done once."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.servers import ROOT

_LEFT_OUT = ("scipy", "sklearn", "boto3", "sympy", "torch._dynamo", "torch.distributed.tensor")
_SHOW = f"""
import json, sys
{{before}}
from runners.modeling.lean_imports import import_transformers
import_transformers()
print(json.dumps([module for module in {_LEFT_OUT} if module in sys.modules]))
{{after}}
"""
_USE_ALL = """
import scipy.optimize, torch, torch._dynamo, importlib.metadata
from transformers import AutoModelForSequenceClassification, models
compiled = torch.compile(lambda number: number + 1, backend="eager")
print(json.dumps([torch.distributed.is_available(), compiled(1), len(models._class_to_module)]))
"""

# Prints, of the process after each step, whether the library is in it and whether `torch` is imported.
_LOAD_LIBRARIES = """
import json, sys, threading
from pathlib import Path
from runners.modeling.lean_imports import load_torch_libraries
def show():
    print(json.dumps(["libtorch_python" in Path("/proc/self/maps").read_text(), "torch" in sys.modules]))
show()
load_torch_libraries()
threads = threading.enumerate()[1:]
[thread.join() for thread in threads]
show()
import torch
load_torch_libraries()
assert torch.ones(2).sum() == 2 and len(threads) == 1 and threading.active_count() == 1
show()
"""


def _show(before: str = "", after: str = "") -> list[Any]:
    program = _SHOW.format(before=before, after=after)
    shown = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in shown.stdout.splitlines()]


def test_an_encoder_s_process_has_no_compiler_and_no_training() -> None:
    assert _show() == [[]]


def test_the_libraries_are_loaded_before_the_import() -> None:
    shown = subprocess.run(
        [sys.executable, "-c", _LOAD_LIBRARIES], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [json.loads(line) for line in shown.splitlines()] == [[False, False], [True, False], [True, True]]


def test_libraries_that_cannot_be_loaded_are_left_to_the_import() -> None:
    broken = "import ctypes; ctypes.CDLL = lambda name: (_ for _ in ()).throw(OSError(name))\n"
    done = subprocess.run(
        [sys.executable, "-c", broken + "import runners.modeling.lean_imports as lean; lean._load_libraries()"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""


def test_what_was_left_out_can_be_imported_later() -> None:
    models = "import transformers.models\nprint(json.dumps(len(transformers.models._class_to_module)))"
    _, used = _show(after=_USE_ALL)
    count, *_ = _show(before=models)
    assert used == [True, 2, count]


@pytest.mark.parametrize(
    "before",
    [
        "import transformers.modeling_utils",
        # As if another version had another layout.
        "import runners.modeling.lean_imports as lean; lean._MODULES = ('transformers.modeling_utils', 'transformers.no')",
    ],
)
def test_whatever_is_imported_models_load(before: str) -> None:
    """Where the packages are other ones, all of them are imported, as without this module."""
    shown = _show(
        before=before, after="import runners.encoder.loader\nprint(json.dumps('torch.distributed' in sys.modules))"
    )
    assert shown[-1] is True
