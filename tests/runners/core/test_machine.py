from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runners.core.machine import count_cores


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"cpu.max": "200000 100000"}, 2),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 8),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_affinity_and_quota(files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert count_cores(cgroup=tmp_path) == cores


@pytest.mark.parametrize(("workers", "cores"), [(1, 8), (2, 4), (3, 2), (9, 1)])
def test_workers_share_the_cores(workers: int, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert count_cores(workers, tmp_path) == cores


@pytest.mark.parametrize("engine", ["encoder", "generator"])
def test_torch_is_not_imported_with_an_engine(engine: str) -> None:
    """libgomp reads its settings when torch loads it."""
    script = f"import sys, runners.{engine}.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
