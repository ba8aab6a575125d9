"""Turns of connections in the event loop, so that a flood of requests makes many short iterations of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

# Pieces of input that are handled in an iteration, each of which may start a request: some ms together.
_MOST = 16
# The most iterations without new turns while connections arrive; each accepts one connection.
_MOST_PASSED = 64


class Turns:
    """Limits the work in an iteration of the event loop; further work waits for the next iterations, in order.

    uvloop handles all bytes that have come over all connections, and then runs all tasks that they started, before it
    looks again: without turns, 4,000 requests at once make one iteration of over a second.

    An iteration accepts one connection. While connections arrive, fewer requests get a turn, so that a new connection,
    which may be a probe's, does not wait for the requests of all earlier connections.
    """

    def __init__(self) -> None:
        self._left = _MOST
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_scheduled = False
        self._has_new_connection = False
        self._passed = 0

    def take(self) -> bool:
        """Whether the caller may continue now; if not, it must `wait`."""
        if not self._left:
            return False
        self._left -= 1
        self._schedule()
        return True

    def wait(self, work: Callable[[], None]) -> None:
        """Call `work` when its turn comes."""
        self._waiting.append(work)
        self._schedule()

    def note_connection(self) -> None:
        """Note that a connection was accepted in this iteration."""
        self._has_new_connection = True

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._begin_iteration)

    def _begin_iteration(self) -> None:
        self._is_scheduled = False
        if self._has_new_connection and self._passed < _MOST_PASSED:
            self._has_new_connection = False
            self._passed += 1
            if self._waiting:
                self._schedule()
            return
        self._passed = 0
        self._left = _MOST
        if self._waiting:
            self._schedule()
        while self._left and self._waiting:
            self._left -= 1
            self._waiting.popleft()()
