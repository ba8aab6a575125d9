"""Runs the programs of this folder in the environments of real clients, which `make test-clients` makes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.servers import ROOT


def find_environment(group: str) -> Path:
    """The folder of programs in the environment of one of the project's dependency groups."""
    return ROOT / f".venv-{group}" / "bin"


def needs_environment(group: str) -> pytest.MarkDecorator:
    """Skips tests where the environment of a dependency group is not installed."""
    is_missing = not (find_environment(group) / "python").exists()
    return pytest.mark.skipif(is_missing, reason=f"{group} is not installed: make test-clients installs it")


def run_python(group: str, words: Sequence[str], home: Path, **variables: str) -> str:
    """What a command of Python prints in the environment of a dependency group.

    Args:
        home: where clients write.
        variables: further ones of the process.
    """
    ran = subprocess.run(
        [str(find_environment(group) / "python"), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "HF_HOME": str(home / "hub"), "HAYSTACK_TELEMETRY_ENABLED": "False"} | variables,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def run_client(group: str, module: str, words: Sequence[str], home: Path, **variables: str) -> Any:
    """What a program of this folder says in its last line, which is JSON."""
    printed = run_python(group, ["-m", f"tests.clients.{module}", *words], home, **variables)
    return json.loads(printed.splitlines()[-1])
