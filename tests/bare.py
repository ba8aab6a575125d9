"""An environment with torch, transformers, tokenizers and pytest alone, as a machine with a GPU and no network has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.servers import ROOT

_INSTALLED = ("torch", "transformers", "tokenizers", "pytest")
# Commands of transformers and huggingface_hub need it, and it brings pydantic with it.
_LEFT_OUT = frozenset({"typer"})


def link_packages(folder: Path) -> Path:
    """Fill a folder with links to these packages and to those that they require."""
    found: dict[str, Distribution] = {}
    _collect(_INSTALLED, found)
    for each in found.values():
        files = each.files or []
        for name in {file.parts[0] for file in files} - {"..", "__pycache__"}:
            link = folder / name
            if not link.exists():
                link.symlink_to(Path(str(each.locate_file(name))))
    return folder


def _collect(names: Iterable[str], found: dict[str, Distribution]) -> None:
    for name in names:
        if name not in found and name not in _LEFT_OUT:
            found[name] = distribution(name)
            required = map(Requirement, found[name].requires or ())
            _collect((one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})), found)


def run_bare(packages: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the source tree, with no packages but those of a folder."""
    environment = {**os.environ, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-S", *words]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
