from __future__ import annotations

import asyncio
import sys

import pytest

from runners.free_memory import _resident, give_back_free_memory

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="other systems give memory back themselves")
def test_what_requests_leave_in_the_heap_goes_back_to_the_system() -> None:
    async def run() -> None:
        giving = asyncio.create_task(give_back_free_memory(lambda: True, lambda: False, period=0.05))
        await asyncio.sleep(0.5)
        # Pieces too small for mappings of their own; the last one keeps the heap from ending before the others.
        pieces = [bytes(100_000) for _ in range(2000)]
        last = pieces.pop()
        most = _resident()
        pieces.clear()
        async with asyncio.timeout(60):
            while _resident() > most - 100 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        giving.cancel()
        del last

    asyncio.run(run())
