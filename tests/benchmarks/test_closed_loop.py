from __future__ import annotations

import asyncio

import pytest

from benchmarks.closed_loop import closed_loop


async def test_a_load_lasts_until_the_callers_that_wait_longest_are_counted() -> None:
    """One answer at a time, and more callers than are answered within the time that is asked for."""
    server = asyncio.Lock()

    async def ask(_: int) -> bool:
        async with server:
            await asyncio.sleep(0.001)
        return True

    load = await closed_loop(ask, callers=64, texts_a_request=1, seconds=0.01)
    assert load.requests >= 2 * 64
    # After the first answers, each request waits for those of all others.
    assert load.p50 > 64


async def test_a_failed_caller_ends_the_load() -> None:
    async def ask(turn: int) -> bool:
        if turn == 3:
            raise ValueError("no answer")
        await asyncio.sleep(0.001)
        return True

    with pytest.raises(ValueError, match="no answer"):
        await closed_loop(ask, callers=2, texts_a_request=1, seconds=60)
