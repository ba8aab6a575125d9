from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator

import pytest

from runners.garbage import collect_when_idle


class _Cycle:
    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def passes() -> Iterator[list[int]]:
    """The generation of each pass of the collector."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "stop":
            seen.append(info["generation"])

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def _grow() -> list[list[int]]:
    """So many objects that Python would look at all of them, again and again."""
    return [[] for _ in range(500_000)]


async def _run(busy: bool, longest: float, seconds: float) -> None:
    task = asyncio.create_task(collect_when_idle(lambda: busy, period=0.01, longest=longest))
    await asyncio.sleep(0)
    _grow()
    await asyncio.sleep(seconds)
    task.cancel()


def test_without_it_a_growing_heap_is_looked_at_as_a_whole(passes: list[int]) -> None:
    _grow()
    assert 2 in passes


def test_under_load_there_is_no_full_pass(passes: list[int]) -> None:
    asyncio.run(_run(busy=True, longest=60, seconds=0.1))
    assert 1 in passes
    assert 2 not in passes


@pytest.mark.parametrize(("busy", "longest"), [(False, 60), (True, 0.02)])
def test_when_idle_or_after_a_while_old_garbage_is_collected(busy: bool, longest: float) -> None:
    cycle = _Cycle()
    gc.collect()
    gone = weakref.ref(cycle)
    del cycle
    asyncio.run(_run(busy, longest, seconds=0.2))
    assert gone() is None


def test_python_decides_again_once_it_is_stopped() -> None:
    before = gc.get_threshold()
    asyncio.run(_run(busy=False, longest=60, seconds=0))
    assert gc.get_threshold() == before


def test_nothing_is_looked_at_where_nothing_happened(passes: list[int]) -> None:
    async def run() -> None:
        gc.collect()
        passes.clear()
        task = asyncio.create_task(collect_when_idle(lambda: False, period=0.01))
        await asyncio.sleep(0.1)
        task.cancel()

    asyncio.run(run())
    assert passes.count(2) <= 1
