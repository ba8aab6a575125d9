"""Whose turn it is: by order, not by time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from runners.core.errors import ModelNotReadyError
from runners.encoder.fair_thread import FairThread, Flow


class Busy:
    """A thread that is held until what is to be compared waits, and the order in which it did that."""

    def __init__(self) -> None:
        self.thread = FairThread("test")
        self.done: list[str] = []
        self._free = threading.Event()
        self.runs = threading.Event()
        self._held = asyncio.ensure_future(self.thread.run(Flow(), 1, self._hold))

    def _hold(self) -> None:
        self.runs.set()
        self._free.wait()

    def ask(self, flow: Flow, cost: int, name: str) -> asyncio.Future[None]:
        return asyncio.ensure_future(self.thread.run(flow, cost, lambda: self.done.append(name)))

    async def release(self) -> None:
        await asyncio.sleep(0)
        self._free.set()
        await self._held


async def test_a_new_small_request_overtakes_the_rest_of_a_large_one() -> None:
    busy = Busy()
    large = Flow()
    asked = [busy.ask(large, 1000, f"large {number}") for number in range(4)]
    asked += [busy.ask(Flow(), 10, "small"), busy.ask(Flow(), 10, "smaller")]
    await busy.release()
    await asyncio.gather(*asked)
    assert busy.done == ["large 0", "small", "smaller", "large 1", "large 2", "large 3"]


async def test_large_requests_take_turns_by_cost() -> None:
    busy = Busy()
    costly, cheap = Flow(), Flow()
    asked = [busy.ask(costly, 200, "costly") for _ in range(3)] + [busy.ask(cheap, 100, "cheap") for _ in range(6)]
    await busy.release()
    await asyncio.gather(*asked)
    assert busy.done == ["costly", "cheap", "cheap"] * 3


async def test_who_has_gone_gets_no_turn() -> None:
    busy = Busy()
    gone, stays = busy.ask(Flow(), 1, "gone"), busy.ask(Flow(), 1, "stays")
    await asyncio.sleep(0)
    gone.cancel()
    await busy.release()
    await stays
    assert busy.done == ["stays"]


async def test_an_error_is_that_of_its_work_only() -> None:
    def fail() -> None:
        raise ValueError("no")

    thread = FairThread("test")
    with pytest.raises(ValueError, match="no"):
        await thread.run(Flow(), 1, fail)
    assert await thread.run(Flow(), 1, lambda: 3) == 3


@pytest.mark.parametrize("late", [False, True])
async def test_closing_fails_what_waits_and_what_comes(late: bool) -> None:
    busy = Busy()
    ask: Callable[[], asyncio.Future[None]] = lambda: busy.ask(Flow(), 1, "never")  # noqa: E731
    waits = None if late else ask()
    await asyncio.to_thread(busy.runs.wait)
    busy.thread.close()
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        await (waits or ask())
    await busy.release()
    assert busy.done == []


@pytest.mark.parametrize(("cost", "inline_cost", "is_inline"), [(99, 100, True), (100, 100, False), (1, 0, False)])
async def test_cheap_work_is_done_by_the_caller_of_an_idle_thread(cost: int, inline_cost: int, is_inline: bool) -> None:
    thread = FairThread("test")
    for _ in range(3):
        worker = await thread.run(Flow(), cost, threading.current_thread, inline_cost)
        assert (worker is threading.current_thread()) == is_inline
    thread.close()


async def test_cheap_work_waits_for_its_turn_while_the_thread_is_busy() -> None:
    busy = Busy()
    await asyncio.to_thread(busy.runs.wait)
    asked = asyncio.ensure_future(busy.thread.run(Flow(), 1, lambda: busy.done.append("cheap"), 100))
    await asyncio.sleep(0)
    assert not busy.done
    await busy.release()
    await asked
    assert busy.done == ["cheap"]
    await busy.thread.run(Flow(), 1, lambda: busy.done.append("inline"), 100)
    assert busy.done == ["cheap", "inline"]


async def test_the_thread_waits_while_a_caller_works_in_its_place() -> None:
    thread = FairThread("test")
    asked: list[asyncio.Future[bool]] = []
    is_working = False

    def work() -> None:
        nonlocal is_working
        is_working = True
        asked.append(asyncio.ensure_future(thread.run(Flow(), 1, lambda: is_working)))
        is_working = False

    await thread.run(Flow(), 1, work, 100)
    assert not await asked[0]
    thread.close()


async def test_an_error_of_inline_work_leaves_the_thread_idle() -> None:
    thread = FairThread("test")
    with pytest.raises(ZeroDivisionError):
        await thread.run(Flow(), 1, lambda: 1 / 0, 100)
    assert await thread.run(Flow(), 1, lambda: "next") == "next"
    thread.close()
    with pytest.raises(ModelNotReadyError):
        await thread.run(Flow(), 1, lambda: "closed", 100)
