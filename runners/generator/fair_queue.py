"""The waiting sequences, in an order that is fair to the requests of clients.

Start-time fair queueing (Goyal, Vin, Cheng 1996). The first sequence of a request gets the tag of the sequence that was
taken last. The tag of each further one is larger by the number of tokens of the one before. The sequence with the
smallest tag is next, so that a request of one sequence does not wait for all sequences of a request of a thousand.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from enum import Enum, auto

from runners.generator.sequence_state import Generation

# Entries of ended requests that may stay in the heap, in addition to as many as there are requests.
_MAX_STALE = 64


class Verdict(Enum):
    """Whether a sequence may run now.

    PASS: not yet, but sequences of other requests may. STOP: no further sequence may.
    """

    TAKE = auto()
    PASS = auto()
    STOP = auto()


class _Share:
    """The waiting sequences of a request.

    Attributes:
        live: number of sequences that have not been cancelled.
    """

    __slots__ = ("live", "owner", "waiting")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.waiting: deque[Generation] = deque()
        self.live = 0


class FairQueue:
    """Waiting sequences by `owner`, the client's request. Each call takes logarithmic time; not thread-safe."""

    def __init__(self) -> None:
        self._shares: dict[Hashable, _Share] = {}
        # The tag of each request's first sequence.
        self._heap: list[tuple[float, int, _Share]] = []
        self._order = itertools.count()
        self._now = 0.0
        self._restarted: deque[Generation] = deque()
        self._count = 0

    def __len__(self) -> int:
        """Number of sequences that have not been cancelled."""
        return self._count

    def has_others(self, owner: Hashable) -> bool:
        """Whether sequences of other requests wait."""
        restarted = any(generation.owner != owner for generation in self._restarted)
        return restarted or len(self._shares) > (owner in self._shares)

    def push(self, generation: Generation) -> None:
        """Add a sequence after those of its request."""
        share = self._shares.get(generation.owner)
        if share is None:
            share = self._shares[generation.owner] = _Share(generation.owner)
            heapq.heappush(self._heap, (self._now, next(self._order), share))
        share.waiting.append(generation)
        share.live += 1
        self._begin(generation)

    def push_first(self, generations: Sequence[Generation]) -> None:
        """Add sequences that have run before, ahead of all others."""
        self._restarted.extendleft(reversed(generations))
        for generation in generations:
            self._begin(generation)

    def discard(self, generation: Generation) -> None:
        """Remove a sequence that has been cancelled; its entry is dropped later."""
        if not generation.waiting:
            return
        self._end(generation)
        share = self._shares.get(generation.owner)
        if share is None or generation in self._restarted:
            return
        share.live -= 1
        if not share.live:
            del self._shares[share.owner]
            share.waiting.clear()
        if len(self._heap) > 2 * len(self._shares) + _MAX_STALE:
            self._heap = [entry for entry in self._heap if entry[2].waiting]
            heapq.heapify(self._heap)

    def take(self, judge: Callable[[Generation], Verdict]) -> Generation | None:
        """Remove and return the next sequence that may run now."""
        while self._restarted:
            generation = self._restarted[0]
            if not generation.cancelled and judge(generation) is not Verdict.TAKE:
                return None
            self._restarted.popleft()
            if not generation.cancelled:
                self._end(generation)
                return generation
        passed: list[tuple[float, int, _Share]] = []
        try:
            while self._heap:
                entry = heapq.heappop(self._heap)
                waiting = entry[2].waiting
                while waiting and waiting[0].cancelled:
                    waiting.popleft()
                if not waiting:
                    continue
                verdict = judge(waiting[0])
                if verdict is Verdict.TAKE:
                    return self._take(entry)
                passed.append(entry)
                if verdict is Verdict.STOP:
                    break
        finally:
            for entry in passed:
                heapq.heappush(self._heap, entry)
        return None

    def drain(self) -> list[Generation]:
        """Remove and return all sequences that have not been cancelled."""
        drained = [
            generation
            for waiting in (self._restarted, *(share.waiting for share in self._shares.values()))
            for generation in waiting
            if generation.waiting
        ]
        for generation in drained:
            self._end(generation)
        self._restarted.clear()
        self._shares.clear()
        self._heap.clear()
        return drained

    def _take(self, entry: tuple[float, int, _Share]) -> Generation:
        tag, _, share = entry
        generation = share.waiting.popleft()
        share.live -= 1
        self._now = max(self._now, tag)
        if share.live:
            heapq.heappush(self._heap, (tag + generation.length, next(self._order), share))
        else:
            del self._shares[share.owner]
            share.waiting.clear()
        self._end(generation)
        return generation

    def _begin(self, generation: Generation) -> None:
        generation.waiting = True
        self._count += 1

    def _end(self, generation: Generation) -> None:
        generation.waiting = False
        self._count -= 1
