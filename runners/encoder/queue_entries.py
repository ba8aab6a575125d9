"""What waits for the model: requests, their sequences of tokens, and the order in which batches take these."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from runners.core.predictions import Options, Prediction
from runners.encoder.sequences import Reading, TokenizedText

# So many batches of all while both wait begin with large requests, the others with small ones.
_LARGE_TURN = 4


class Job:
    """The texts of one request on their way through the queue."""

    def __init__(self, texts: int, characters: int, arrival: float) -> None:
        """
        Args:
            texts: how many predictions make the job complete.
            characters: what the job has been admitted for.
            arrival: what the queue had served when the request came.
        """
        self._loop = asyncio.get_running_loop()
        self._predictions: list[Prediction | None] = [None] * texts
        self._missing = texts
        self.texts = texts
        self.result: asyncio.Future[list[Prediction]] = self._loop.create_future()
        self.characters = characters
        # Of its answer, as far as they are counted.
        self.numbers = 0
        self.tag = arrival
        self.queued_cost = 0.0
        # Its texts in the queue, and their tokens; none once it is released, although they may still lie there.
        self.waiting = 0
        self.waiting_tokens = 0
        self.wants_room = False
        self._room = asyncio.Event()

    @property
    def abandoned(self) -> bool:
        """Whether nobody waits for it any more: the caller has gone, or another of its texts has failed."""
        return self.result.done()

    def give_room(self) -> None:
        """Let `wait` return; from any thread."""
        self.wants_room = False
        self._call(self._room.set)

    async def wait(self) -> None:
        """Wait for room, or for the result."""
        self._room.clear()
        if not self.abandoned:
            await self._room.wait()

    def deliver(self, answers: Sequence[tuple[int, Prediction | Exception]]) -> None:
        """Take answers by position, from any thread."""
        self._call(self._accept, answers)

    def _call(self, function: Callable[..., None], *values: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:
            # The caller's event loop is closed, and nobody waits.
            return

    def _accept(self, answers: Sequence[tuple[int, Prediction | Exception]]) -> None:
        for position, answer in answers:
            if self.result.done():
                return
            if isinstance(answer, Exception):
                self.result.set_exception(answer)
                self._room.set()
                return
            # Two threads that run parts of one text may both have seen its last one come.
            self._missing -= self._predictions[position] is None
            self._predictions[position] = answer
        if not self._missing:
            self.result.set_result([prediction for prediction in self._predictions if prediction is not None])


@dataclass(slots=True, order=True)
class Entry:
    """A sequence of tokens in the queue, the whole of a text or a part, ordered by its tag and then by age."""

    tag: float
    age: int
    job: Job = field(compare=False)
    position: int = field(compare=False)
    reading: Reading = field(compare=False)
    part: int = field(compare=False)
    options: Options = field(compare=False)
    # In tokens: at least the part of a batch's that each of its texts takes; of a small request at most a batch's.
    cost: float = field(compare=False)
    # Whether it is of a request that has little for the model.
    is_small: bool = field(compare=False, default=False)

    @property
    def text(self) -> TokenizedText:
        return self.reading.sequences[self.part]

    @property
    def tokens(self) -> int:
        return len(self.text.input_ids)


class EntryOrder:
    """The entries of small requests, and those of all others, each in the order of their tags.

    Small ones come first in a batch, so that one text waits neither for many texts of one request nor for many
    requests of some texts; but one batch in four begins with the others, which so get on whoever else comes.

    Attributes:
        time: what each small entry would have had by now, had they shared the model equally: the virtual time of
            weighted fair queueing. A small request's tag is this and its cost, so that the cheapest goes first, and
            none is overtaken for ever.
    """

    def __init__(self) -> None:
        self.time = 0.0
        self._small: list[Entry] = []
        self._large: list[Entry] = []
        self._batches = 0

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def __iter__(self) -> Iterator[Entry]:
        """In no order."""
        return chain(self._small, self._large)

    def start_batch(self) -> None:
        """What is taken from now on is another batch."""
        self._batches += 1

    def push(self, entry: Entry) -> None:
        heapq.heappush(self._small if entry.is_small else self._large, entry)

    def first(self) -> Entry | None:
        """What `pop` takes."""
        heap = self._due()
        return heap[0] if heap else None

    def pop(self) -> Entry:
        return heapq.heappop(self._due())

    def charge(self, batch: Sequence[Entry]) -> None:
        """These have been popped, and run."""
        costs = [entry.cost for entry in batch if entry.is_small]
        if costs:
            self.time += sum(costs) / (len(self._small) + len(costs))

    def keep(self, wanted: Callable[[Entry], bool]) -> None:
        """Drop all others."""
        for heap in (self._small, self._large):
            heap[:] = filter(wanted, heap)
            heapq.heapify(heap)

    def clear(self) -> None:
        self._small.clear()
        self._large.clear()

    def _due(self) -> list[Entry]:
        if self._batches % _LARGE_TURN == 0:
            return self._large or self._small
        return self._small or self._large
