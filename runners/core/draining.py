"""Waits until running requests have ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# Kubernetes kills a server 30 s after SIGTERM.
DRAIN_SECONDS = 20.0
_POLL_SECONDS = 0.02


async def wait_until(idle: Callable[[], bool]) -> None:
    """Wait until `idle` is true, for at most `DRAIN_SECONDS`."""
    deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
    # Requests end in many places, each of which would have to set an event.
    while not idle() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_POLL_SECONDS)
