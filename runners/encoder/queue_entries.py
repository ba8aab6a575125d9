"""The requests and sequences that wait for the model, and the order in which batches take them."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, TypeAlias

from runners.core.errors import ModelNotReadyError
from runners.core.request_record import RequestRecord, current_record
from runners.encoder.sequences import EncodedText, TokenizedText

if TYPE_CHECKING:
    from runners.core.predictions import Options, Prediction

# Answers of a request, by the positions of their texts.
Answers: TypeAlias = "Sequence[tuple[int, Prediction | Exception]]"

# One batch of this many begins with large requests, the others with small ones.
_LARGE_TURN = 4


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
        _call(self.loop, self._room.set)

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
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[PendingRequest, Answers]]] = {}
    for request, answered in answers.items():
        by_loop.setdefault(request.loop, []).append((request, answered))
    for loop, group in by_loop.items():
        _call(loop, _add_all, group)


def refuse(entries: Iterable[Entry]) -> None:
    """Fail the requests of these entries because their model's threads are closed; from any thread."""
    deliver({entry.request: [(entry.position, ModelNotReadyError.of_shutdown())] for entry in entries})


def _add_all(group: Sequence[tuple[PendingRequest, Answers]]) -> None:
    for request, answered in group:
        request.add_answers(answered)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *values: object) -> None:
    try:
        loop.call_soon_threadsafe(function, *values)
    except RuntimeError:
        # The caller's event loop is closed.
        return


@dataclass(slots=True, order=True)
class Entry:
    """A sequence in the queue, ordered by its tag and then by its age.

    Attributes:
        position: position of its text in the request.
        part: position of the sequence in its text.
        cost: in tokens, at least a batch's tokens divided by its texts; for a small request at most a batch's tokens.
        is_small: whether its request is small.
    """

    tag: float
    age: int
    request: PendingRequest = field(compare=False)
    position: int = field(compare=False)
    encoded: EncodedText = field(compare=False)
    part: int = field(compare=False)
    options: Options = field(compare=False)
    cost: float = field(compare=False)
    is_small: bool = field(compare=False, default=False)

    @property
    def text(self) -> TokenizedText:
        return self.encoded.sequences[self.part]

    @property
    def tokens(self) -> int:
        return len(self.text.input_ids)


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
        self._small: list[Entry] = []
        self._large: list[Entry] = []
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
        heapq.heappush(self._small if entry.is_small else self._large, entry)

    def first(self) -> Entry | None:
        """The entry that `pop` will return."""
        heap = self._due()
        return heap[0] if heap else None

    def pop(self) -> Entry:
        return heapq.heappop(self._due())

    def charge(self, batch: Sequence[Entry]) -> None:
        """Advance the virtual time by the entries of a batch, after they have been popped."""
        costs = [entry.cost for entry in batch if entry.is_small]
        if costs:
            self.time += sum(costs) / (len(self._small) + len(costs))

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Keep the wanted entries and remove all others."""
        for heap in (self._small, self._large):
            heap[:] = filter(wanted, heap)
            heapq.heapify(heap)

    def clear(self) -> None:
        self._small.clear()
        self._large.clear()

    def _due(self) -> list[Entry]:
        """The heap that the current batch takes from."""
        if self._batches % _LARGE_TURN == 0:
            return self._large or self._small
        return self._small or self._large
