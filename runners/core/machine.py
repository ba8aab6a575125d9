"""The cores and the memory that this process may use, and how its threads wait for each other."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
_LIMITS = (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"))
# Turns of a loop for which libgomp's threads wait at a barrier before they sleep.
_SPIN_COUNT = "1000"


def count_cores(workers: int = 1, cgroup: Path = _CGROUP) -> int:
    """A worker's share of the cores of the process's affinity mask, at most its cgroup's CPU quota rounded up.

    PyTorch knows the mask but not the quota: in a container with 2 of 64 cores it would start 64 threads.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _read_quota(cgroup)
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores // workers)


def limit_spinning() -> None:
    """Let OpenMP's threads spin shortly at barriers, unless the operator says otherwise; before torch is imported.

    At libgomp's default they spin so long that, where another process wants the cores, a model is 5 to 20 times slower.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", _SPIN_COUNT)


def _read_quota(cgroup: Path) -> float | None:
    """CPUs by the quota of cgroup v2 (cpu.max) or v1 (cpu.cfs_quota_us); None where there is none."""
    try:
        if (unified := cgroup / "cpu.max").is_file():
            quota, period = unified.read_text().split()
        else:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text()
        return float(quota) / float(period) if float(quota) > 0 else None
    except (OSError, ValueError):
        return None


def available_memory(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Bytes that can be had without swapping: the machine's, at most what the cgroup (v2 or v1) leaves."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, usage in _LIMITS:
        try:
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
        except (OSError, ValueError):
            # No such cgroup, or "max".
            continue
    return max(free, 0)
