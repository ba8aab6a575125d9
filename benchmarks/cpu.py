"""The CPU time that a server takes: steadier than what it answers a second, where others want the machine too."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from statistics import median
from typing import Any

import psutil

from benchmarks.load import Load


def measure(processes: list[psutil.Process], load: Coroutine[Any, Any, Load]) -> tuple[float, Load]:
    """CPU microseconds a request of the processes that answer it, and the load, of which no request may fail."""
    before = cpu_seconds(processes)
    found = asyncio.run(load)
    if found.errors:
        raise SystemExit(f"error: {found.errors} requests failed")
    return 1e6 * (cpu_seconds(processes) - before) / found.requests, found


def serving(url: str) -> list[psutil.Process]:
    """The processes that listen on the port of a URL, and their children."""
    port = int(url.rpartition(":")[2])
    listening = [one for one in psutil.net_connections("tcp") if one.status == "LISTEN" and one.laddr.port == port]
    started = [psutil.Process(pid) for pid in {one.pid for one in listening}]
    return list({found for process in started for found in (process, *process.children(recursive=True))})


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """What they have used so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def describe_spread(values: Sequence[float], digits: int = 2) -> str:
    """The median of some pairs' figures, and the figures themselves in order."""
    listed = ", ".join(f"{value:.{digits}f}" for value in sorted(values))
    return f"{median(values):.{digits}f} ({listed})"
