"""The full passes of Python's garbage collector, which hold the GIL for as long as it takes to look at every object."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable

# Seconds between two looks.
_PERIOD = 5.0
# Seconds after which there is a pass also under load: what lives long is seldom garbage.
_LONGEST = 60.0
# Passes over what is not young before a full one comes by itself: millions of objects.
_RARELY = 1000


async def collect_when_idle(is_busy: Callable[[], bool], period: float = _PERIOD, longest: float = _LONGEST) -> None:
    """Let full passes wait until the process idles, for ever; cycles that die young are collected as before.

    Python runs one whenever there are a fourth more objects: while 5,000 requests come at once that is ten times, of up
    to 0.3 s each.
    """
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], _RARELY)
    last = time.monotonic()
    try:
        while True:
            await asyncio.sleep(period)
            if is_busy() and time.monotonic() - last < longest:
                continue
            last = time.monotonic()
            # Without as much as a pass over young objects since the last one there is nothing to find.
            if any(gc.get_count()[1:]):
                gc.collect()
    finally:
        gc.set_threshold(*before)
