"""Memory that the process has freed, and glibc keeps for what is allocated next."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable
from pathlib import Path

# Seconds between two looks.
_PERIOD = 5.0
# What may be kept above the least that the process has had: to take it again costs page faults.
_SLACK = 32 * 2**20
_PAGES = Path("/proc/self/statm")


async def give_back_free_memory(
    is_ready: Callable[[], bool], is_busy: Callable[[], bool], period: float = _PERIOD
) -> None:
    """Give free memory back to the system while the process idles with more than it once had when ready, for ever.

    Under load it would be taken again at once: that costs a fifth of the throughput.

    A large request leaves holes in the heaps of several threads, and glibc itself gives back only a heap's end.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    least: int | None = None
    while True:
        await asyncio.sleep(period)
        if not is_ready():
            # A model that is loaded again needs another amount.
            least = None
            continue
        if not is_busy() and (least is None or _resident() > least + _SLACK):
            # It takes some ms, in which it does not hold the GIL.
            await asyncio.to_thread(trim, 0)
        least = min(least or _resident(), _resident())


def _resident() -> int:
    """Bytes in memory: https://www.kernel.org/doc/html/latest/filesystems/proc.html, table 1-3."""
    return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
