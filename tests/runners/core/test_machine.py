from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runners.core.machine import available_memory, count_cores, format_size


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


@pytest.mark.parametrize(
    ("files", "available"),
    [
        ({}, 8192),
        ({"memory.max": "max", "memory.current": "5000"}, 8192),
        ({"memory.max": "6000", "memory.current": "5000"}, 1000),
        # The kernel drops the pages of files that nobody has used for a while.
        ({"memory.max": "6000", "memory.current": "5000", "memory.stat": "anon 1000\ninactive_file 3000"}, 4000),
        ({"memory.max": "1000", "memory.current": "5000"}, 0),
        ({"memory/memory.limit_in_bytes": "6000", "memory/memory.usage_in_bytes": "5500"}, 500),
        (
            {
                "memory/memory.limit_in_bytes": "6000",
                "memory/memory.usage_in_bytes": "5500",
                "memory/memory.stat": "total_inactive_file 200",
            },
            700,
        ),
    ],
)
def test_available_memory(files: dict[str, str], available: int, tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemAvailable:   8 kB\n")
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_memory(meminfo, tmp_path) == available


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (2048, "2 KiB"), (3 * 2**20, "3 MiB"), (2**31, "2.0 GiB")]
)
def test_format_size(count: int, text: str) -> None:
    assert format_size(count) == text


@pytest.mark.parametrize("engine", ["encoder", "generator"])
def test_torch_is_not_imported_with_an_engine(engine: str) -> None:
    """libgomp reads its settings when torch loads it."""
    script = f"import sys, runners.{engine}.runner; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
