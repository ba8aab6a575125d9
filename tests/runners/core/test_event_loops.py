"""Calls on event loops from another thread."""

from __future__ import annotations

import asyncio
import threading

from runners.core.event_loops import call_on_loops


async def test_each_loop_gets_its_items_in_one_call_and_closed_ones_get_none() -> None:
    closed = asyncio.new_event_loop()
    closed.close()
    open_loop, here = asyncio.get_running_loop(), threading.current_thread()
    called = asyncio.Event()
    calls: list[tuple[list[int], bool]] = []

    def receive(items: list[int]) -> None:
        calls.append((items, threading.current_thread() is here))
        called.set()

    items = [(open_loop, 1), (closed, 2), (open_loop, 3), (closed, 4)]
    assert await asyncio.to_thread(call_on_loops, receive, items) == [2, 4]
    await asyncio.wait_for(called.wait(), 30)
    assert calls == [([1, 3], True)]
