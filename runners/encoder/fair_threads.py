"""Threads that are shared fairly by the work of many requests."""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from runners.core.errors import ModelNotReadyError
from runners.core.event_loops import call_on_loops

# What each thread has of its own, what a piece of work is done with, what is computed for it, and its result.
Resource = TypeVar("Resource")
Item = TypeVar("Item")
Computed = TypeVar("Computed")
Result = TypeVar("Result")


class Flow:
    """The work of one request.

    Attributes:
        finish: finish tag of its last piece, in units of cost.
    """

    __slots__ = ("finish",)

    def __init__(self) -> None:
        self.finish = 0


@dataclass(frozen=True, slots=True)
class Work(Generic[Resource, Item, Computed, Result]):
    """What is done with an item, or with several of a kind at once.

    Attributes:
        compute: called with several items; returns what it has computed for each. If it raises an error, it is called
            again with each item alone.
        finish: called with each item and what was computed for it; returns the item's result.
        kind: items of an equal kind may be computed together; None for an item that is computed alone.
    """

    compute: Callable[[Resource, Sequence[Item]], Sequence[Computed]]
    finish: Callable[[Item, Computed], Result]
    kind: object = None

    def run(self, resource: Resource, item: Item) -> Result:
        """The result of one item."""
        [computed] = self.compute(resource, [item])
        return self.finish(item, computed)


@dataclass(slots=True, order=True)
class _Piece:
    """A piece of work, ordered by its start tag and then by age."""

    start: int
    age: int
    cost: int = field(compare=False)
    work: Work[Any, Any, Any, Any] = field(compare=False)
    item: Any = field(compare=False)
    # It holds the context of log lines.
    context: contextvars.Context = field(compare=False)
    loop: asyncio.AbstractEventLoop = field(compare=False)
    result: asyncio.Future[Any] = field(compare=False)

    def settle(self, value: object, error: BaseException | None) -> None:
        """Give the caller its result or raise an error there; on the caller's event loop."""
        if self.result.done():
            return
        if error is None:
            self.result.set_result(value)
        else:
            self.result.set_exception(error)


_Outcome = tuple[_Piece, object, BaseException | None]


class FairThreads(Generic[Resource]):
    """Runs pieces of work in a few threads, ordered by start-time fair queueing.

    The start tag of a piece is the finish tag of the last piece of its flow, or the start tag of the piece that was
    taken last, whichever is later. Its finish tag is its start tag plus its cost. So the first piece of a new request
    runs before the later pieces of a large request. A thread takes the first piece, and with it the following ones of
    its kind, up to a cost.

    A thread is woken if none is awake, or if the work that waits and runs is worth more threads than are awake. So
    pieces that come one by one wait for the one that runs and are then done together, which costs fewer handovers
    between threads than a thread for each.

    Source: Goyal, Vin, Cheng, "Start-time Fair Queueing", SIGCOMM 1996.
    """

    def __init__(self, name: str, resources: Sequence[Resource], group_cost: int, thread_cost: int) -> None:
        """
        Args:
            resources: what each thread has of its own; there is a thread for each.
            group_cost: pieces are done together up to this cost.
            thread_cost: another thread is woken for each time that the work under way has this cost. A piece counts
                this cost at most.
        """
        self._pieces: list[_Piece] = []
        self._ages = count()
        self._now = 0
        self._group_cost = group_cost
        self._thread_cost = thread_cost
        self._load = 0
        self._awake = len(resources)
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._work, args=(resource,), name=name, daemon=True) for resource in resources
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        """The number of threads."""
        return len(self._threads)

    @property
    def is_waiting(self) -> bool:
        """Whether a piece waits for a thread."""
        return bool(self._pieces)

    async def run(self, flow: Flow, cost: int, work: Work[Resource, Item, Any, Result], item: Item) -> Result:
        """Do `work` with `item` when its turn comes; it is skipped if the caller is cancelled before.

        Raises:
            ModelNotReadyError: the threads are closed.
            Exception: whatever `work` raises.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[Result] = loop.create_future()
        with self._changed:
            if self._closed:
                raise ModelNotReadyError.of_shutdown()
            start = max(self._now, flow.finish)
            flow.finish = start + cost
            piece = _Piece(start, next(self._ages), cost, work, item, contextvars.copy_context(), loop, result)
            heapq.heappush(self._pieces, piece)
            self._load += self._count_load(piece)
            if self._awake < min(len(self._threads), 1 + self._load // self._thread_cost):
                self._awake += 1
                self._changed.notify()
        return await result

    def close(self) -> None:
        """Fail the waiting pieces; those that run end normally."""
        with self._changed:
            self._closed = True
            refused = [*self._pieces]
            self._pieces.clear()
            self._awake = len(self._threads)
            self._changed.notify_all()
        _deliver([(piece, None, ModelNotReadyError.of_shutdown()) for piece in refused])

    def _count_load(self, piece: _Piece) -> int:
        return min(piece.cost, self._thread_cost)

    def _work(self, resource: Resource) -> None:
        while group := self._take():
            outcomes = _run_group(resource, group)
            with self._changed:
                self._load -= sum(map(self._count_load, group))
            _deliver(outcomes)
            # Else the waiting thread would keep the last texts in memory.
            del outcomes, group

    def _take(self) -> list[_Piece]:
        """The pieces to do next; empty if the threads are closed."""
        with self._changed:
            while not self._pieces:
                if self._closed:
                    return []
                self._awake -= 1
                # Who wakes a thread counts it as awake.
                self._changed.wait()
            group = [heapq.heappop(self._pieces)]
            cost, kind = group[0].cost, group[0].work.kind
            while kind is not None and self._pieces:
                following = self._pieces[0]
                if cost + following.cost > self._group_cost or following.work.kind != kind:
                    break
                group.append(heapq.heappop(self._pieces))
                cost += following.cost
            self._now = group[-1].start
            return group


def _run_group(resource: object, group: Sequence[_Piece]) -> list[_Outcome]:
    """Do the work of pieces of one kind, without those whose callers have been cancelled."""
    pieces = [piece for piece in group if not piece.result.cancelled()]
    if not pieces:
        return []
    work = pieces[0].work
    try:
        computed = pieces[0].context.run(work.compute, resource, [piece.item for piece in pieces])
    except BaseException as error:
        if len(pieces) == 1:
            return [(pieces[0], None, error)]
        return [outcome for piece in pieces for outcome in _run_group(resource, [piece])]
    return [_finish(piece, each) for piece, each in zip(pieces, computed, strict=True)]


def _finish(piece: _Piece, computed: object) -> _Outcome:
    try:
        return piece, piece.context.run(piece.work.finish, piece.item, computed), None
    except BaseException as error:
        return piece, None, error


def _deliver(outcomes: Sequence[_Outcome]) -> None:
    """Settle pieces with one wake-up of each event loop; from any thread."""
    call_on_loops(_settle, ((outcome[0].loop, outcome) for outcome in outcomes))


def _settle(outcomes: Sequence[_Outcome]) -> None:
    for piece, value, error in outcomes:
        piece.settle(value, error)
