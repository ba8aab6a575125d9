"""The memory that a server takes."""

from __future__ import annotations

import psutil


def measure_memory(processes: list[psutil.Process]) -> float:
    """Megabytes of these processes together; what they share counts once (PSS)."""
    return float(sum(process.memory_full_info().pss for process in processes)) / 1e6
