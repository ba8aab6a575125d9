"""The CPU time that a server takes: steadier than what it answers a second, where others want the machine too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Sequence
from statistics import median
from typing import Any

import psutil

from benchmarks.closed_loop import Load

_IDLE_SAMPLE = 0.5
# Of a core.
_IDLE_PART = 0.1


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


def wait_until_idle(processes: list[psutil.Process], seconds: float = 60) -> None:
    """Wait until they compute nothing, at most `seconds`: some servers finish requests whose client has left."""
    end = time.monotonic() + seconds
    used = cpu_seconds(processes)
    while time.monotonic() < end:
        time.sleep(_IDLE_SAMPLE)
        before, used = used, cpu_seconds(processes)
        if used - before < _IDLE_PART * _IDLE_SAMPLE:
            return


def describe_spread(values: Sequence[float], digits: int = 2) -> str:
    """The median of some pairs' figures, and the figures themselves in order."""
    listed = ", ".join(f"{value:.{digits}f}" for value in sorted(values))
    return f"{median(values):.{digits}f} ({listed})"
