"""Memory that the process has freed, and glibc keeps for what is allocated next."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
from collections.abc import Callable
from pathlib import Path

# Seconds between two looks.
_PERIOD = 5.0
# What may be kept above the need: to take it again costs page faults.
_SLACK = 32 * 2**20
_PAGES = Path("/proc/self/statm")


class Excess:
    """Tells whether a process that has a model holds more memory than it needs.

    While it idles it needs the least that it has had. Under load, memory that is given back may be taken again at once,
    which costs time: what is back at the next look is needed, until it idles again.
    """

    def __init__(self) -> None:
        self._least = self._needed = math.inf
        self._was_excess = False

    def find(self, resident: int, is_busy: bool) -> bool:
        """Whether to give back memory, at one of the regular looks.

        Args:
            resident: bytes that the process has in memory.
        """
        self._least = min(self._least, resident)
        if not is_busy:
            self._needed = self._least
        elif self._was_excess or math.isinf(self._needed):
            self._needed = max(self._least, resident)
        self._was_excess = resident > self._needed + _SLACK
        return self._was_excess


async def give_back_free_memory(
    is_ready: Callable[[], bool], is_busy: Callable[[], bool], period: float = _PERIOD
) -> None:
    """Give back to the system what the process holds beyond its need, for ever.

    A large request leaves holes in the heaps of several threads, and glibc itself gives back only a heap's end.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        return
    excess = Excess()
    while True:
        await asyncio.sleep(period)
        if not is_ready():
            # A model that is loaded again needs another amount.
            excess = Excess()
        elif excess.find(_resident(), is_busy()):
            # An error and the frames of its traceback keep each other, and with them the body of its request.
            gc.collect()
            # It takes some ms, in which it does not hold the GIL.
            await asyncio.to_thread(trim, 0)


def _resident() -> int:
    """Bytes in memory: https://www.kernel.org/doc/html/latest/filesystems/proc.html, table 1-3."""
    return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
