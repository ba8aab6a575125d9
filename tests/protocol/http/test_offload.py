"""Works that would hold up the event loop: one at a time, and none waits for all of another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest

from protocol.http import offload as module
from protocol.http.offload import give_way, offload
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TURN_SECONDS", 0.0)


async def run_beside(long: Callable[[], None], *others: Callable[[], None]) -> None:
    """Run a work, and others that come once it runs; it goes on when one of them waits."""
    started = threading.Event()

    def begin() -> None:
        started.set()
        if others:
            wait_until(lambda: module._turns.is_awaited)
        long()

    works = [asyncio.create_task(offload(begin))]
    await asyncio.to_thread(started.wait)
    works += [asyncio.create_task(offload(other)) for other in others]
    await asyncio.gather(*works)


async def test_what_comes_later_waits_for_a_piece_alone() -> None:
    done: list[str] = []

    def long() -> None:
        for piece in range(3):
            done.append(f"piece {piece}")
            give_way()

    await run_beside(long, lambda: done.append("short"))
    assert done == ["piece 0", "short", "piece 1", "piece 2"]


async def test_long_works_share_the_time() -> None:
    done: list[str] = []

    def make(name: str) -> Callable[[], None]:
        def work() -> None:
            for _ in range(20):
                done.append(name)
                time.sleep(0.002)
                give_way()

        return work

    await run_beside(make("a"), make("b"))
    assert done.count("a") == done.count("b") == 20
    assert "b" in done[:5], done
    assert "a" in done[20:], done


async def test_one_runs_at_a_time() -> None:
    running: list[int] = []
    most: list[int] = []

    def work() -> None:
        for _ in range(5):
            running.append(1)
            most.append(len(running))
            time.sleep(0.001)
            running.pop()
            give_way()

    await run_beside(work, *[work] * 10)
    assert most == [1] * 55


async def test_an_error_is_raised_and_gives_the_turn_back() -> None:
    def fail() -> None:
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        await offload(fail)
    assert await offload(lambda: 7) == 7


async def test_elsewhere_there_is_no_turn_to_give() -> None:
    done: list[str] = []

    def long() -> None:
        thread = threading.Thread(target=give_way)
        thread.start()
        thread.join()
        done.append("long")

    await run_beside(long, lambda: done.append("short"))
    assert done == ["long", "short"]
