from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.several_models import _wait_for_flood


def test_a_flood_that_dies_ends_the_benchmark() -> None:
    with subprocess.Popen([sys.executable, "-c", "exit(3)"]) as flood:
        flood.wait()
        with pytest.raises(SystemExit, match="the flood has ended with the code 3"):
            _wait_for_flood("http://localhost:1", flood)
