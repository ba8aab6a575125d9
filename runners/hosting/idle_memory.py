"""Memory of requests that are over: what Python's garbage keeps, and what glibc keeps for what is allocated next."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

# Seconds between two looks, and seconds after which garbage is collected also under load.
_PERIOD = 5.0
_LONGEST = 60.0
# Passes over what is not young before a full one comes by itself: millions of objects.
_RARELY = 1000
# What may be kept above the need: to take it again costs page faults.
_SLACK = 32 * 2**20
# Looks, one after the other, at which an idle process gives back memory in vain.
_MOST_TRIES = 3
# Looks after which what was needed may not be needed any more: a minute.
_LOOKS_A_TRIAL = 12
# Heaps that all threads share. By default each thread gets one, and of each up to 64 MiB stay, which are never trimmed.
_MOST_HEAPS = 2
# https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.h
_M_ARENA_MAX = -8
_PAGES = Path("/proc/self/statm")


class Excess:
    """Tells whether a process that has a model holds more memory than it needs.

    It needs the least that it has had, until that is tried: what is still or again in memory after memory was given
    back, some times while the process idles, once under load, is needed. It is in use, or is taken again at once, which
    costs time. When load ends, and every minute, the least is tried again.
    """

    def __init__(self) -> None:
        self._least = self._needed = math.inf
        self._looks = self._tries = 0
        self._was_busy = False

    def find(self, resident: int, is_busy: bool) -> bool:
        """Whether to give back memory, at one of the regular looks.

        Args:
            resident: bytes that the process has in memory.
        """
        self._least = min(self._least, resident)
        self._looks += 1
        if (self._was_busy and not is_busy) or self._looks % _LOOKS_A_TRIAL == 0:
            self._needed, self._tries = self._least, 0
        elif self._tries >= (1 if is_busy else _MOST_TRIES) or math.isinf(self._needed):
            self._needed, self._tries = resident, 0
        self._needed = max(self._least, min(self._needed, resident))
        self._was_busy = is_busy
        is_excess = resident > self._needed + _SLACK
        self._tries = self._tries + 1 if is_excess else 0
        return is_excess


def limit_heaps() -> None:
    """Let all threads allocate in few heaps, unless the operator says how many; before they are started."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _MOST_HEAPS)


async def release_memory(
    is_ready: Callable[[], bool], is_busy: Callable[[], bool], period: float = _PERIOD, longest: float = _LONGEST
) -> None:
    """Collect garbage and give back what the process holds beyond its need, when it hurts nobody, for ever.

    An error and the frames of its traceback keep each other, and with them the body of its request, until a full pass
    of the garbage collector. Python makes one whenever there are a fourth more objects: while 5,000 requests come at
    once that is ten times, of up to 0.3 s each, in which nothing else runs. Cycles that die young are not concerned.

    A large request leaves holes in the heaps of several threads, and glibc itself gives back only a heap's end.
    """
    # None where there is no glibc.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    thresholds = gc.get_threshold()
    gc.set_threshold(thresholds[0], thresholds[1], _RARELY)
    excess = Excess()
    collected = time.monotonic()
    try:
        while True:
            await asyncio.sleep(period)
            busy = is_busy()
            if not is_ready():
                # A model that is loaded again needs another amount.
                excess = Excess()
            is_excess = trim is not None and is_ready() and excess.find(_resident(), busy)
            # Without as much as a pass over young objects since the last one there is nothing to find.
            if (not busy and any(gc.get_count()[1:])) or is_excess or time.monotonic() - collected > longest:
                collected = time.monotonic()
                gc.collect()
            if trim is not None and is_excess:
                # It takes some ms, in which it does not hold the GIL.
                await asyncio.to_thread(trim, 0)
    finally:
        gc.set_threshold(*thresholds)


def _resident() -> int:
    """Bytes in memory: https://www.kernel.org/doc/html/latest/filesystems/proc.html, table 1-3."""
    return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
