"""The requests and sequences that wait for the model, and the order in which batches take them."""

from __future__ import annotations

import asyncio
import heapq
from bisect import insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from runners.core.errors import ModelNotReadyError, RunnerError
from runners.core.event_loops import call_on_loops
from runners.core.request_record import RequestRecord, current_record
from runners.encoder.sequences import EncodedText, TokenizedText

if TYPE_CHECKING:
    from runners.core.predictions import Options, Prediction

# Answers of a request, by the positions of their texts.
Answers: TypeAlias = "Sequence[tuple[int, Prediction | Exception]]"

# Of this many batches, the first begins with large requests, the others with small ones.
_TURNS = 4
# Of these batches, this one begins with the oldest of the small requests, if a batch has texts of similar length.
_OLDEST_TURN = 2


class PendingRequest:
    """A request from its admission until it is answered.

    Attributes:
        loop: the event loop of its caller.
        texts: number of its texts.
        result: its predictions, in order, or the first error.
        characters: number of characters of its texts (see `count_characters`).
        numbers: how many numbers of its answer are reserved.
        tag: the tag of its next entry, unless it is small.
        queued_cost: cost of all its entries so far.
        waiting: how many of its entries are in the queue; 0 once it is released, although they may still be there.
        waiting_tokens: the tokens of these entries.
        wants_room: whether `wait` waits for the queue to take more.
        record: the record of its caller's request, which other threads cannot find; None without one.
    """

    def __init__(self, texts: int, characters: int, arrival: float) -> None:
        """
        Args:
            arrival: how many tokens the queue had served when the request arrived.
        """
        self.loop = asyncio.get_running_loop()
        self._predictions: list[Prediction | None] = [None] * texts
        self._missing = texts
        self.texts = texts
        self.result: asyncio.Future[list[Prediction]] = self.loop.create_future()
        self.characters = characters
        self.numbers = 0
        self.tag = arrival
        self.queued_cost = 0.0
        self.waiting = 0
        self.waiting_tokens = 0
        self.wants_room = False
        self._room = asyncio.Event()
        self.record: RequestRecord | None = current_record.get()
        if self.record is not None:
            self.record.texts += texts

    @property
    def abandoned(self) -> bool:
        """Whether it is over: answered, failed, or cancelled by its caller."""
        return self.result.done()

    def give_room(self) -> None:
        """Let `wait` return; from any thread."""
        self.wants_room = False
        # Its event loop may be closed.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self._room.set)

    async def wait(self) -> None:
        """Wait for room, or for the result."""
        self._room.clear()
        if not self.abandoned:
            await self._room.wait()

    def deliver(self, answers: Answers) -> None:
        """Add answers; from any thread."""
        deliver({self: answers})

    def add_answers(self, answers: Answers) -> None:
        """Add answers; on the event loop of its caller."""
        for position, answer in answers:
            if self.result.done():
                return
            if isinstance(answer, Exception):
                self.result.set_exception(answer)
                self._room.set()
                return
            # Two threads that run sequences of one text may both have completed it.
            self._missing -= self._predictions[position] is None
            self._predictions[position] = answer
        if not self._missing:
            self.result.set_result([prediction for prediction in self._predictions if prediction is not None])


def deliver(answers: Mapping[PendingRequest, Answers]) -> None:
    """Add answers to their requests, with one wake-up of each event loop; from any thread."""
    call_on_loops(_add_all, ((item[0].loop, item) for item in answers.items()))


def refuse(entries: Iterable[Entry], reason: RunnerError | None = None) -> None:
    """Fail the requests of these entries; from any thread.

    Args:
        reason: None if their model's threads are closed.
    """
    error = reason or ModelNotReadyError.of_shutdown()
    deliver({entry.request: [(entry.position, error)] for entry in entries})


def _add_all(group: Sequence[tuple[PendingRequest, Answers]]) -> None:
    for request, answered in group:
        request.add_answers(answered)


@dataclass(slots=True, eq=False)
class Entry:
    """A sequence in the queue, ordered by its tag and then by its age.

    Attributes:
        position: position of its text in the request.
        part: position of the sequence in its text.
        tokens: how many tokens the sequence has.
        cost: in tokens, at least a batch's tokens divided by its texts; for a small request at most a batch's tokens.
        is_small: whether its request is small.
    """

    tag: float
    age: int
    request: PendingRequest
    position: int
    encoded: EncodedText
    part: int
    options: Options
    tokens: int
    cost: float
    is_small: bool = False

    def __lt__(self, other: Entry) -> bool:
        return self.tag < other.tag or (self.tag == other.tag and self.age < other.age)

    @property
    def text(self) -> TokenizedText:
        return self.encoded.sequences[self.part]


class EntryHeap:
    """Entries by their order. The first ones are sorted if they have been looked at, and all others are a heap."""

    def __init__(self) -> None:
        self._sorted: list[Entry] = []
        self._others: list[Entry] = []

    def __len__(self) -> int:
        return len(self._sorted) + len(self._others)

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in no order."""
        return chain(self._sorted, self._others)

    def push(self, entry: Entry) -> None:
        if self._sorted and entry < self._sorted[-1]:
            insort(self._sorted, entry)
        else:
            heapq.heappush(self._others, entry)

    def first(self) -> Entry | None:
        """The entry that `pop` will return."""
        if self._sorted:
            return self._sorted[0]
        return self._others[0] if self._others else None

    def pop(self) -> Entry:
        return self._sorted.pop(0) if self._sorted else heapq.heappop(self._others)

    def look(self, most: int) -> list[Entry]:
        """The first entries in order, at most so many; they stay."""
        while len(self._sorted) < most and self._others:
            self._sorted.append(heapq.heappop(self._others))
        return self._sorted[:most]

    def remove(self, entries: frozenset[Entry]) -> None:
        """Remove entries that `look` has returned."""
        self._sorted = [entry for entry in self._sorted if entry not in entries]

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Keep the wanted entries and remove all others."""
        self._sorted = [*filter(wanted, self._sorted)]
        self._others = [*filter(wanted, self._others)]
        heapq.heapify(self._others)


class EntryOrder:
    """The waiting entries: those of small requests and those of large ones, each ordered by their tags.

    A batch begins with small requests, so that a single text waits neither for a request of many texts nor for many
    requests of some texts. One batch in four begins with large requests, so that they progress under any load.

    Attributes:
        time: the virtual time of weighted fair queueing: the cost that each small entry would have been served by now
            if all shared the model equally. The tag of a small request is this time plus its cost, so that the cheapest
            request goes first, and every request waits for a bounded time.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self._small = EntryHeap()
        self._large = EntryHeap()
        self._batches = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in no order."""
        return chain(self._small, self._large)

    def start_batch(self) -> None:
        """The entries popped from now on belong to another batch."""
        self._batches += 1

    def push(self, entry: Entry) -> None:
        (self._small if entry.is_small else self._large).push(entry)

    def first(self) -> Entry | None:
        """The entry that `pop` will return."""
        return self._due().first()

    def pop(self) -> Entry:
        return self._due().pop()

    def look(self, most: int) -> list[Entry]:
        """The entries that a batch of texts of similar length is chosen from, at most so many; they stay.

        The batch begins with the first of them. It is the entry that `pop` would return, or in one batch of four the
        small entry that has waited for longest: entries of rare lengths would otherwise be passed over for as long as
        shorter ones arrive.
        """
        due = self._due()
        entries = due.look(most)
        if due is self._small and self._batches % _TURNS == _OLDEST_TURN:
            oldest = min(entries, key=lambda entry: entry.age, default=None)
            entries.sort(key=lambda entry: entry is not oldest)
        others = self._large if due is self._small else self._small
        return entries + others.look(most - len(entries))

    def remove(self, entries: Iterable[Entry]) -> None:
        """Remove entries that `look` has returned."""
        removed = frozenset(entries)
        self._small.remove(removed)
        self._large.remove(removed)

    def charge(self, batch: Sequence[Entry]) -> None:
        """Advance the virtual time by the entries of a batch, after they have been removed."""
        costs = [entry.cost for entry in batch if entry.is_small]
        if costs:
            self.time += sum(costs) / (len(self._small) + len(costs))

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Keep the wanted entries and remove all others."""
        self._small.keep(wanted)
        self._large.keep(wanted)

    def clear(self) -> None:
        self._small = EntryHeap()
        self._large = EntryHeap()

    def _due(self) -> EntryHeap:
        """The heap that the current batch takes from."""
        if self._batches % _TURNS == 0:
            return self._large or self._small
        return self._small or self._large
