"""The models of `make demo`, of which a fresh clone has none."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable

from filelock import FileLock

from tests.servers import ROOT

FOLDER = ROOT / "demo/models"


def run_make_demo() -> None:
    """Run `make demo`, in one process of pytest at a time."""
    FOLDER.mkdir(exist_ok=True)
    with FileLock(FOLDER / ".lock"):
        # Beside another worker's tests, two threads wait for each other most of the time: ten minutes instead of two.
        subprocess.run(["make", "demo"], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True)


def make_demo_models(names: Iterable[str]) -> None:
    """Make the models of the demo, if one of these is missing."""
    if not all((FOLDER / name / "model.safetensors").is_file() for name in names):
        run_make_demo()
