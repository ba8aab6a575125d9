"""Mixed traffic of a bounded number of callers, which pauses at will."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

Action = Callable[[], Awaitable[None]]
# So many actions are drawn at a time.
_DECK = 4096


@dataclass(frozen=True)
class Weighted:
    """Something that a caller does, and how often, beside others."""

    weight: float
    action: Action


class Traffic:
    """Callers that each do one thing after another, drawn by weight, while the traffic is not paused."""

    def __init__(self, callers: Sequence[Sequence[Weighted]], random: Random) -> None:
        """
        Args:
            callers: what each caller does.
        """
        self._random = random
        self._running = asyncio.Event()
        self._busy = 0
        self._resting = asyncio.Event()
        self._resting.set()
        self._tasks = [asyncio.create_task(self._call(actions)) for actions in callers]

    async def run(self, seconds: float) -> None:
        """Let the callers work for so long, then wait until each has what it asked for.

        Raises:
            Exception: what a caller has failed with.
        """
        self._running.set()
        await asyncio.wait(self._tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._running.clear()
        for task in self._tasks:
            if task.done():
                task.result()
        await self._resting.wait()

    async def close(self) -> None:
        """End the callers."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _call(self, weighted: Sequence[Weighted]) -> None:
        actions, weights = [each.action for each in weighted], [each.weight for each in weighted]
        while True:
            for action in self._random.choices(actions, weights, k=_DECK):
                if not self._running.is_set():
                    await self._running.wait()
                self._busy += 1
                self._resting.clear()
                try:
                    await action()
                finally:
                    self._busy -= 1
                    if not self._busy:
                        self._resting.set()
