"""Work that would hold up the event loop: decoding, rendering and compressing what is large."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

# One thread: each call into a C library may hold the GIL for some ms, and several threads would do so in turn.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="offload")


async def offload(work: Callable[[], T]) -> T:
    """Do work in the thread that all requests share; none of its steps may hold the GIL for over 20 ms."""
    return await asyncio.get_running_loop().run_in_executor(_thread, contextvars.copy_context().run, work)
