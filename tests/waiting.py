"""Polls until a condition is true."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

_PAUSE_SECONDS = 0.005


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return once the condition is true.

    Raises:
        AssertionError: the condition is still false after these seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        time.sleep(_PAUSE_SECONDS)


async def eventually(condition: Callable[[], object], seconds: float = 30) -> None:
    """Return once the condition is true; the event loop runs meanwhile.

    Raises:
        AssertionError: the condition is still false after these seconds.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not true within {seconds} s"
        await asyncio.sleep(_PAUSE_SECONDS)
