"""Closed-loop load: so many callers, each sending its next request when it has its answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import fmean, quantiles

_POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Load:
    """What a load measured; latencies in milliseconds."""

    callers: int
    texts_a_request: int
    texts_a_second: float
    p50: float
    p95: float
    p99: float
    errors: int
    requests: int


async def closed_loop(
    ask: Callable[[int], Awaitable[bool]], callers: int, texts_a_request: int, seconds: float
) -> Load:
    """Load a server for `seconds`, after a quarter of that to warm up.

    Both last longer if requests do: an answer for each caller is awaited in the warm-up, and another one after it.
    Else the callers whose first requests have waited longest would be left out.

    Args:
        ask: asks the n-th time; whether it was answered well.
    """
    finished: list[tuple[float, float]] = []
    errors = 0
    turn = count()

    async def call() -> None:
        nonlocal errors
        while True:
            sent = time.perf_counter()
            errors += not await ask(next(turn))
            finished.append((time.perf_counter(), time.perf_counter() - sent))

    tasks = [asyncio.create_task(call()) for _ in range(callers)]
    warm = await _wait(tasks, seconds / 4, lambda: len(finished) >= callers)
    first = len(finished)
    end = await _wait(tasks, seconds, lambda: len(finished) >= first + callers)
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended
    latencies = [1000 * latency for when, latency in finished if warm <= when <= end]
    # Inclusive, since no quantile of few latencies may exceed the longest.
    cuts = quantiles(latencies, n=100, method="inclusive") if len(latencies) > 1 else latencies * 99
    # Little's law for a closed loop: as exact for callers that wait in step, whose answers come in bursts.
    texts_a_second = callers * texts_a_request / (fmean(latencies) / 1000)
    return Load(callers, texts_a_request, texts_a_second, cuts[49], cuts[94], cuts[98], errors, len(finished))


async def _wait(tasks: Sequence[asyncio.Task[None]], seconds: float, is_enough: Callable[[], bool]) -> float:
    """Wait for `seconds`, longer until it is enough, or until a caller has failed; returns the time then."""
    least = time.perf_counter() + seconds
    while time.perf_counter() < least or not is_enough():
        if any(task.done() for task in tasks):
            break
        await asyncio.sleep(_POLL_SECONDS)
    return time.perf_counter()
