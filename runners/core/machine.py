"""The CPU cores and the memory that this process may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")
# Of each version: the files of the limit and of the usage, and the statistic of the part of the usage that the kernel
# drops when it needs memory: pages of files.
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def count_cores(workers: int = 1, cgroup: Path = _CGROUP) -> int:
    """The cores for one of `workers` processes: those of the affinity mask, or the cgroup's CPU quota if that is less.

    PyTorch reads the mask but not the quota: in a container with 2 of 64 cores it would start 64 threads.
    """
    cores = len(os.sched_getaffinity(0))
    quota = _read_quota(cgroup)
    if quota is not None:
        cores = min(cores, math.ceil(quota))
    return max(1, cores // workers)


def _read_quota(cgroup: Path) -> float | None:
    """The CPU quota of cgroup v2 (cpu.max) or v1 (cpu.cfs_quota_us); None without a quota."""
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
    """The bytes that can be allocated without swapping, on the machine and in the cgroup (v2 or v1)."""
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    for limit, usage, statistics, inactive in _LIMITS:
        try:
            used = int((cgroup / usage).read_text()) - _read_statistic(cgroup / statistics, inactive)
            free = min(free, int((cgroup / limit).read_text()) - used)
        except (OSError, ValueError):
            # There is no such cgroup, or the limit is "max".
            continue
    return max(free, 0)


def _read_statistic(path: Path, name: str) -> int:
    """A number of a cgroup's memory.stat; 0 if there is none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return int(dict(line.split() for line in lines).get(name, 0))


def format_size(count: float) -> str:
    """A number of bytes with a unit."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
