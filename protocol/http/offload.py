"""Threads for work that would block the event loop: decoding, rendering and compressing large bodies.

One of the threads runs at a time: a call into a C library may hold the GIL for some ms, and several threads would do so
in turn. Long work gives way between its pieces, so that no request waits for all of another's work.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from typing import TypeVar

T = TypeVar("T")

# A waiting thread costs little; further work waits until one of these threads is free.
_threads = ThreadPoolExecutor(max_workers=64, thread_name_prefix="offload")
_TURN_SECONDS = 0.01


class _ThreadShare(threading.local):
    """The time that the work of this thread has used, in seconds on the clock of `_ThreadTurns`."""

    is_running = False
    finish = 0.0
    since = 0.0


class _ThreadTurns:
    """Lets one thread run at a time, in the order of start-time fair queueing.

    A turn starts where the last turn of its work ended, or where the running turn started, whichever is later. So the
    first turn of new work comes before further turns of long work.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ages = count()
        self._now = 0.0
        self._is_taken = False
        self._waiting: list[tuple[float, int, threading.Lock]] = []

    @property
    def is_awaited(self) -> bool:
        return bool(self._waiting)

    def take(self, finish: float) -> float:
        """Wait for a turn, and return when it starts."""
        with self._lock:
            start = max(self._now, finish)
            if not self._is_taken:
                self._is_taken, self._now = True, start
                return start
            turn = threading.Lock()
            turn.acquire()
            heapq.heappush(self._waiting, (start, next(self._ages), turn))
        # The thread that hands over its turn releases it.
        turn.acquire()
        return start

    def hand_over(self) -> None:
        with self._lock:
            if not self._waiting:
                self._is_taken = False
                return
            self._now, _, turn = heapq.heappop(self._waiting)
        turn.release()


_turns = _ThreadTurns()
_share = _ThreadShare()


async def offload(work: Callable[[], T]) -> T:
    """Run `work` in a thread while the other threads of this module wait; no step may hold the GIL for over 20 ms."""
    run = partial(contextvars.copy_context().run, _run, work)
    return await asyncio.get_running_loop().run_in_executor(_threads, run)


async def offload_large(work: Callable[[], T], size: int, inline_size: int) -> T:
    """Run `work` in a thread if its size is above `inline_size`, else at once."""
    return work() if size <= inline_size else await offload(work)


def give_way() -> None:
    """Let other work run if this work has used up its turn; long work calls this between its pieces, in any thread."""
    if not _share.is_running or (seconds := time.perf_counter() - _share.since) < _TURN_SECONDS:
        return
    _share.finish += seconds
    if _turns.is_awaited:
        _turns.hand_over()
        _share.finish = _turns.take(_share.finish)
    _share.since = time.perf_counter()


def _run(work: Callable[[], T]) -> T:
    _share.finish = _turns.take(0.0)
    _share.since, _share.is_running = time.perf_counter(), True
    try:
        return work()
    finally:
        _share.is_running = False
        _turns.hand_over()
