"""Calls on the event loops of those who wait for results, from the threads that have computed them."""

from __future__ import annotations

from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def call_on_loops(function: Callable[[list[T]], None], items: Iterable[tuple[AbstractEventLoop, T]]) -> list[T]:
    """Call a function on each event loop with the items of that loop, so that each wakes once; from any thread.

    Args:
        items: each with its event loop.

    Returns:
        The items whose event loop is closed: nobody waits for them.
    """
    by_loop: dict[AbstractEventLoop, list[T]] = {}
    for loop, item in items:
        by_loop.setdefault(loop, []).append(item)
    lost: list[T] = []
    for loop, group in by_loop.items():
        try:
            loop.call_soon_threadsafe(function, group)
        except RuntimeError:
            lost += group
    return lost
