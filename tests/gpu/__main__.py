"""Tests the GPU path, and prints one JSON line a figure: python -m tests.gpu [--device cpu] [pytest's options]

It runs in a bare source tree: torch 2.11 or newer, transformers, tokenizers and pytest are enough. Tests that need
more are skipped, and the last line names them. `--device cpu` rehearses what needs no card.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.gpu.conftest import DEVICE_VARIABLE

_FOLDER = Path(__file__).parent


class Summary:
    """Counts the outcomes of the tests."""

    def __init__(self) -> None:
        self._outcomes: Counter[str] = Counter()
        self._failed: list[str] = []
        self._skipped: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._outcomes[report.outcome] += 1
        if report.failed:
            self._failed.append(report.nodeid)
        if report.skipped and isinstance(report.longrepr, tuple):
            self._skipped[report.longrepr[2].removeprefix("Skipped: ")] += 1

    def describe(self) -> str:
        """One JSON line."""
        facts = {"figure": "tests", "value": self._outcomes["passed"], "unit": "passed"}
        return json.dumps({**facts, "failed": self._failed, "skipped": self._skipped})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options, others = parser.parse_known_args()
    os.environ[DEVICE_VARIABLE] = options.device
    # Plugins that are installed beside pytest may need packages that a bare tree lacks.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    summary = Summary()
    # The server's own conftest imports its packages, and its options name plugins.
    bare = ["-c", str(_FOLDER / "pytest.ini"), "--rootdir", str(_FOLDER.parent.parent), "--confcutdir", str(_FOLDER)]
    result = pytest.main([*bare, "-m", "gpu", *others, str(_FOLDER)], plugins=[summary])
    sys.stdout.write(f"{summary.describe()}\n")
    return int(result)


if __name__ == "__main__":
    sys.exit(main())
