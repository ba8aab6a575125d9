"""A thread that is shared fairly by the work of many requests."""

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


class Flow:
    """The work of one request.

    Attributes:
        finish: finish tag of its last piece, in units of cost.
    """

    __slots__ = ("finish",)

    def __init__(self) -> None:
        self.finish = 0


@dataclass(slots=True, order=True)
class _Piece(Generic[T]):
    """A piece of work, ordered by its start tag and then by age."""

    start: int
    age: int
    work: Callable[[], T] = field(compare=False)
    # It holds the context of log lines.
    context: contextvars.Context = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    result: asyncio.Future[T] = field(compare=False)

    def run(self) -> None:
        """Do the work, unless its caller has been cancelled."""
        if self.result.cancelled():
            return
        try:
            value = self.context.run(self.work)
        except BaseException as error:
            self.fail(error)
        else:
            self._call(self._succeed, value)

    def fail(self, error: BaseException) -> None:
        """Raise an error in the caller; from any thread."""
        self._call(self._fail, error)

    def _call(self, settle: Callable[..., None], outcome: object) -> None:
        try:
            self.loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            # The caller's event loop is closed.
            return

    def _succeed(self, value: T) -> None:
        if not self.result.done():
            self.result.set_result(value)

    def _fail(self, error: BaseException) -> None:
        if not self.result.done():
            self.result.set_exception(error)


class FairThread:
    """Runs pieces of work one after another, ordered by start-time fair queueing.

    The start tag of a piece is the finish tag of the last piece of its flow, or the start tag of the piece that runs
    now, whichever is later. Its finish tag is its start tag plus its cost. So the first piece of a new request runs
    before the later pieces of a large request.

    Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
    """

    def __init__(self, name: str) -> None:
        self._pieces: list[_Piece[object]] = []
        self._ages = count()
        self._now = 0
        self._is_busy = False
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, flow: Flow, cost: int, work: Callable[[], T], inline_cost: int = 0) -> T:
        """Run `work` when its turn comes, and return what it returns; it is skipped if the caller is cancelled before.

        Args:
            inline_cost: cheaper work is done at once by the caller if the thread is idle, which is faster than waking
                the thread and then the event loop.

        Raises:
            ModelNotReadyError: the thread is closed.
            Exception: whatever `work` raises.
        """
        if cost < inline_cost and self._occupy():
            try:
                return work()
            finally:
                self._vacate()
        loop = asyncio.get_running_loop()
        result: asyncio.Future[T] = loop.create_future()
        with self._changed:
            if self._closed:
                raise ModelNotReadyError.of_shutdown()
            start = max(self._now, flow.finish)
            flow.finish = start + cost
            piece = _Piece(start, next(self._ages), work, contextvars.copy_context(), loop, result)
            heapq.heappush(self._pieces, piece)  # type: ignore[misc]
            self._changed.notify()
        return await result

    def close(self) -> None:
        """Fail the waiting pieces; the piece that runs ends normally."""
        with self._changed:
            self._closed = True
            for piece in self._pieces:
                piece.fail(ModelNotReadyError.of_shutdown())
            self._pieces.clear()
            self._changed.notify()

    def _occupy(self) -> bool:
        """Take the place of the thread if it is idle: until `_vacate` it does nothing."""
        with self._changed:
            if self._is_busy or self._pieces or self._closed:
                return False
            self._is_busy = True
            return True

    def _vacate(self) -> None:
        with self._changed:
            self._is_busy = False
            if self._pieces or self._closed:
                self._changed.notify()

    def _work(self) -> None:
        while (piece := self._take()) is not None:
            piece.run()
            # Else the waiting thread would keep the last texts in memory.
            del piece
            self._vacate()

    def _take(self) -> _Piece[object] | None:
        with self._changed:
            while self._is_busy or not self._pieces:
                if self._closed and not self._pieces:
                    return None
                self._changed.wait()
            self._is_busy = True
            piece = heapq.heappop(self._pieces)
            self._now = piece.start
            return piece
