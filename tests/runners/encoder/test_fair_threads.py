"""Whose turn it is, what is done together, and which threads are woken: by order, not by time."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from runners.core.errors import ModelNotReadyError
from runners.encoder.fair_threads import FairThreads, Flow, Work
from tests.waiting import eventually

context = contextvars.ContextVar("context", default="none")


def start(threads: int = 1, group_cost: int = 1000, thread_cost: int = 10**6) -> FairThreads[int]:
    return FairThreads("test", range(threads), group_cost, thread_cost)


def call(function: Callable[[], Any]) -> Work[int, None, Any, Any]:
    """Work that calls a function, alone."""
    return Work(lambda _, items: [function() for _ in items], lambda _, value: value)


class Busy:
    """A thread that is held until what is to be compared waits, and the order in which it did that.

    Attributes:
        calls: the names of the pieces that were computed in each call.
    """

    def __init__(self) -> None:
        self.threads = start()
        self.done: list[str] = []
        self.calls: list[list[str]] = []
        self._free = threading.Event()
        self.runs = threading.Event()
        self._held = asyncio.ensure_future(self.threads.run(Flow(), 1, call(self._hold), None))

    def _hold(self) -> None:
        self.runs.set()
        self._free.wait()

    def ask(self, flow: Flow, cost: int, name: str, kind: object = None) -> asyncio.Future[str]:
        work = Work(self._compute, self._finish, kind)
        return asyncio.ensure_future(self.threads.run(flow, cost, work, name))

    def _compute(self, _: int, names: Sequence[str]) -> list[str]:
        self.calls.append([*names])
        if any("bad to compute" in name for name in names):
            raise ValueError(str(names))
        return [name.upper() for name in names]

    def _finish(self, name: str, computed: str) -> str:
        if "bad to finish" in name:
            raise KeyError(name)
        self.done.append(name)
        return f"{computed} in {context.get()}"

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

    threads = start()
    with pytest.raises(ValueError, match="no"):
        await threads.run(Flow(), 1, call(fail), None)
    assert await threads.run(Flow(), 1, call(lambda: 3), None) == 3
    threads.close()


@pytest.mark.parametrize("late", [False, True])
async def test_closing_fails_what_waits_and_what_comes(late: bool) -> None:
    busy = Busy()
    ask: Callable[[], asyncio.Future[str]] = lambda: busy.ask(Flow(), 1, "never")  # noqa: E731
    waits = None if late else ask()
    await asyncio.to_thread(busy.runs.wait)
    busy.threads.close()
    with pytest.raises(ModelNotReadyError, match="shutting down"):
        await (waits or ask())
    await busy.release()
    assert busy.done == []


async def test_pieces_of_a_kind_that_wait_are_computed_together_up_to_a_cost() -> None:
    busy = Busy()
    asked = [busy.ask(Flow(), 300, f"a{number}", "a") for number in range(5)]
    asked += [busy.ask(Flow(), 300, "b", "b"), busy.ask(Flow(), 300, "a5", "a")]
    asked += [busy.ask(Flow(), 300, f"alone {number}") for number in range(2)]
    await busy.release()
    answers = await asyncio.gather(*asked)
    assert busy.calls == [["a0", "a1", "a2"], ["a3", "a4"], ["b"], ["a5"], ["alone 0"], ["alone 1"]]
    assert answers[:6] == [f"{name} in none" for name in ("A0", "A1", "A2", "A3", "A4", "B")]


async def test_an_error_in_a_group_is_that_of_its_piece_only() -> None:
    busy = Busy()
    names = ["good", "bad to compute", "bad to finish", "better"]
    asked = [busy.ask(Flow(), 1, name, "kind") for name in names]
    await busy.release()
    found = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(each) for each in found] == ["GOOD in none", "['bad to compute']", "'bad to finish'", "BETTER in none"]
    assert [type(each) for each in found] == [str, ValueError, KeyError, str]
    assert busy.calls == [names, *([name] for name in names)]


async def test_who_has_gone_is_in_no_group() -> None:
    busy = Busy()
    asked = [busy.ask(Flow(), 1, name, "kind") for name in ("first", "gone", "last")]
    await asyncio.sleep(0)
    asked[1].cancel()
    await busy.release()
    await asyncio.gather(*asked, return_exceptions=True)
    assert busy.calls == [["first", "last"]]


async def test_each_piece_of_a_group_has_the_context_of_its_caller() -> None:
    busy = Busy()

    async def ask(name: str) -> str:
        context.set(name)
        return await busy.ask(Flow(), 1, "piece", "kind")

    asked = [asyncio.ensure_future(ask(name)) for name in ("one", "two")]
    await asyncio.sleep(0)
    await busy.release()
    assert await asyncio.gather(*asked) == ["PIECE in one", "PIECE in two"]
    assert busy.calls == [["piece", "piece"]]


@pytest.mark.parametrize(
    ("costs", "threads"),
    [
        pytest.param([10, 10, 10], 1, id="little work waits for the thread that is awake"),
        pytest.param([10, 60, 60], 2, id="more work wakes another"),
        pytest.param([1000, 10], 2, id="what comes beside a large piece does not wait for it"),
        pytest.param([1000, 1000, 1000, 1000], 3, id="as many as there are"),
    ],
)
async def test_another_thread_is_woken_for_as_much_work_as_is_worth_it(costs: list[int], threads: int) -> None:
    pool = start(threads=3, group_cost=1, thread_cost=100)
    free, running = threading.Event(), set[int]()

    def hold(resource: int, items: Sequence[None]) -> Sequence[None]:
        running.add(resource)
        free.wait(60)
        return items

    # All wait before a piece comes.
    await eventually(lambda: not pool._awake)
    asked = [asyncio.ensure_future(pool.run(Flow(), cost, Work(hold, lambda *_: None), None)) for cost in costs]
    await eventually(lambda: len(running) == threads)
    await asyncio.sleep(0.05)
    assert len(running) == threads
    free.set()
    await asyncio.gather(*asked)
    assert not pool._load
    pool.close()
    for thread in pool._threads:
        await asyncio.to_thread(thread.join, 60)
        assert not thread.is_alive()


async def test_many_threads_do_all_that_many_callers_ask() -> None:
    pool = start(threads=4, group_cost=500, thread_cost=100)
    work: Work[int, int, int, int] = Work(lambda _, items: [3 * item for item in items], lambda _, value: value, "kind")
    asked = [pool.run(Flow(), 1 + number % 90, work, number) for number in range(2000)]
    assert await asyncio.gather(*asked) == [3 * number for number in range(2000)]
    assert (pool._load, pool._pieces) == (0, [])
    pool.close()
