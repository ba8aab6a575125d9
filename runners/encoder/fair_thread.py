"""A thread that serves many requests, of which none waits for all of another's work."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from runners.core.errors import ModelNotReadyError

T = TypeVar("T")


class Share:
    """What one request has had of a thread so far, in units of cost."""

    __slots__ = ("finish",)

    def __init__(self) -> None:
        self.finish = 0


@dataclass(slots=True, order=True)
class _Task(Generic[T]):
    """A piece of work, ordered by the place where it starts, and by age."""

    start: int
    age: int
    work: Callable[[], T] = field(compare=False)
    # What the log says of the request is in it.
    context: contextvars.Context = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    result: asyncio.Future[T] = field(compare=False)

    def run(self) -> None:
        """Do the work, unless nobody waits for it any more."""
        if self.result.cancelled():
            return
        try:
            value = self.context.run(self.work)
        except BaseException as error:
            self.fail(error)
        else:
            self._call(self._succeed, value)

    def fail(self, error: BaseException) -> None:
        """Tell who waits that there is no result; from any thread."""
        self._call(self._fail, error)

    def _call(self, settle: Callable[..., None], outcome: object) -> None:
        try:
            self.loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            # The caller's event loop is closed, and nobody waits.
            return

    def _succeed(self, value: T) -> None:
        if not self.result.done():
            self.result.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class FairThread:
    """Runs pieces of work one after another, in the order of start-time fair queueing.

    A piece starts where the last piece of its request ended, or at the piece that runs now, whichever is later. Ends
    are starts plus costs, so that the first piece of a new request overtakes the later ones of a large request.
    """

    def __init__(self, name: str) -> None:
        self._tasks: list[_Task[object]] = []
        self._ages = count()
        self._now = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, share: Share, cost: int, work: Callable[[], T]) -> T:
        """What `work` returns or raises, once it has had its turn; a caller that is cancelled before gives it up.

        Raises:
            ModelNotReadyError: the thread is closed.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        with self._changed:
            if self._closed:
                raise ModelNotReadyError("the server is shutting down")
            start = max(self._now, share.finish)
            share.finish = start + cost
            task = _Task(start, next(self._ages), work, contextvars.copy_context(), loop, result)
            heapq.heappush(self._tasks, task)  # type: ignore[misc]
            self._changed.notify()
        return await result

    def close(self) -> None:
        """Fail what waits; what runs ends by itself."""
        with self._changed:
            self._closed = True
            for task in self._tasks:
                task.fail(ModelNotReadyError("the server is shutting down"))
            self._tasks.clear()
            self._changed.notify()

    def _work(self) -> None:
        while (task := self._take()) is not None:
            task.run()
            # While the thread waits it would hold the last texts.
            del task

    def _take(self) -> _Task[object] | None:
        with self._changed:
            while not self._tasks:
                if self._closed:
                    return None
                self._changed.wait()
            task = heapq.heappop(self._tasks)
            self._now = task.start
            return task
