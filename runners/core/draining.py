"""Waiting for what is under way to end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

# As long as a server that is told to end has; Kubernetes kills it after 30 s.
DRAIN_SECONDS = 20.0
_LOOK_SECONDS = 0.02


async def wait_until(idle: Callable[[], bool]) -> None:
    """Wait until nothing is under way, for `DRAIN_SECONDS` at most."""
    deadline = asyncio.get_running_loop().time() + DRAIN_SECONDS
    # Many parts end what is under way, and each would have to tell.
    while not idle() and asyncio.get_running_loop().time() < deadline:  # noqa: ASYNC110
        await asyncio.sleep(_LOOK_SECONDS)
