"""Returns the memory of finished requests to the system, which Python's garbage and glibc's heaps still hold."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

from runners.core.garbage import find_trim

# Seconds between two checks, and seconds after which garbage is collected under load too.
_PERIOD = 5.0
_LONGEST = 60.0
# The third threshold of `gc`: so high that Python itself never starts a full collection.
_RARELY = 1000
# Bytes above the need that the process keeps, because allocating them again costs page faults.
_SLACK = 32 * 2**20
# Consecutive checks at which an idle process returns memory without an effect.
_MOST_TRIES = 3
# Checks after which the estimate is reset to the smallest size seen: a minute.
_CHECKS_PER_TRIAL = 12
# Heaps that all threads share. By default each thread gets its own, and glibc never returns up to 64 MiB of each. The
# heaps of further threads have at most 64 MiB, and glibc unmaps those that a batch has emptied.
_MOST_HEAPS = 1
# Smaller blocks come from a heap, which keeps this much free memory. By default the large tensors of a batch are mapped
# or the heap is cut each time, and the page faults take 6 % of the time of full batches.
_LARGE_BLOCK = 2**30
# The most that glibc before 2.35 takes.
_OLD_LARGE_BLOCK = 32 * 2**20
# https://sourceware.org/git/?p=glibc.git;a=blob;f=malloc/malloc.h
_M_ARENA_MAX = -8
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_PAGES = Path("/proc/self/statm")


class Excess:
    """Estimates whether a process with a model holds more memory than it needs.

    The estimate of the need is the least memory that the process has had. If the process still holds more after memory
    was returned (several times while it is idle, once under load), that is the new estimate: the memory is in use, or
    would be allocated again at once, which takes time. When load ends, and every minute, the estimate is reset to the
    smallest size seen.
    """

    def __init__(self) -> None:
        self._least = self._needed = math.inf
        self._checks = self._tries = 0
        self._was_busy = False

    def find(self, resident: int, is_busy: bool) -> bool:
        """Whether to return memory now; called at each check.

        Args:
            resident: the bytes of the process in memory.
            is_busy: whether requests are running.
        """
        self._least = min(self._least, resident)
        self._checks += 1
        if (self._was_busy and not is_busy) or self._checks % _CHECKS_PER_TRIAL == 0:
            self._needed, self._tries = self._least, 0
        elif self._tries >= (1 if is_busy else _MOST_TRIES) or math.isinf(self._needed):
            self._needed, self._tries = resident, 0
        self._needed = max(self._least, min(self._needed, resident))
        self._was_busy = is_busy
        is_excess = resident > self._needed + _SLACK
        self._tries = self._tries + 1 if is_excess else 0
        return is_excess


def configure_heaps() -> None:
    """Make all threads share one heap that keeps free memory between batches; call it before threads start.

    `release_memory` returns the free memory of an idle process. The variables of glibc that the operator sets win.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if "MALLOC_ARENA_MAX" not in os.environ:
        mallopt(_M_ARENA_MAX, _MOST_HEAPS)
    is_fixed = "MALLOC_MMAP_THRESHOLD_" in os.environ
    if not is_fixed:
        is_fixed = any(mallopt(_M_MMAP_THRESHOLD, size) for size in (_LARGE_BLOCK, _OLD_LARGE_BLOCK))
    # Alone, this threshold would keep the other one at its first value, 128 KiB.
    if is_fixed and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BLOCK)


async def release_memory(
    is_ready: Callable[[], bool], is_busy: Callable[[], bool], period: float = _PERIOD, longest: float = _LONGEST
) -> None:
    """Forever collect garbage and return unneeded memory to the system, at times when no request has to wait for it.

    An error and the frames of its traceback refer to each other, and keep the body of the request until a full garbage
    collection. Python starts one when the number of objects has grown by a fourth: ten times while 5,000 requests
    arrive at once, and each blocks the process for up to 0.3 s. Young garbage is collected as usual.

    A large request leaves holes in the heaps of several threads, and glibc itself returns only the end of a heap.

    Args:
        is_ready: whether a model is loaded.
        is_busy: whether requests are running.
        period: seconds between two checks.
        longest: seconds after which garbage is collected under load too.
    """
    trim = find_trim()
    thresholds = gc.get_threshold()
    gc.set_threshold(thresholds[0], thresholds[1], _RARELY)
    excess = Excess()
    collected = time.monotonic()
    try:
        while True:
            await asyncio.sleep(period)
            busy = is_busy()
            if not is_ready():
                # The model may be loaded again, and then needs another amount.
                excess = Excess()
            is_excess = trim is not None and is_ready() and excess.find(_resident(), busy)
            # Without a collection of young objects since the last check there is no new garbage.
            if (not busy and any(gc.get_count()[1:])) or is_excess or time.monotonic() - collected > longest:
                collected = time.monotonic()
                gc.collect()
            if trim is not None and is_excess:
                # It takes some milliseconds without the GIL.
                await asyncio.to_thread(trim, 0)
    finally:
        gc.set_threshold(*thresholds)


def _resident() -> int:
    """The bytes of this process in memory: https://www.kernel.org/doc/html/latest/filesystems/proc.html, table 1-3."""
    return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
