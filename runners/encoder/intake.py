"""The way of a request's texts into the queue: in slices, through the tokenizer, a few batches ahead of the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runners.core.errors import with_text_position
from runners.core.predictions import Options, Output, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.encoder.fair_thread import FairThread, Share

if TYPE_CHECKING:
    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.queue_entries import Job
    from runners.encoder.sequences import Reading
    from runners.encoder.tokenization import TextTokenizer

# What is tokenized at a time takes some 10 ms.
_SLICE_CHARACTERS = 2**14
_SLICE_TEXTS = 64
_CHARACTERS_A_TOKEN = 4
_SCORES = frozenset({"logits", "probabilities"})


class Lane:
    """A thread that tokenizes, with a tokenizer of its own: its truncation is set and unset for some texts."""

    def __init__(self, name: str, tokenizer: TextTokenizer) -> None:
        self.thread = FairThread(name)
        self.tokenizer = tokenizer.copy()


class TokenizerLanes:
    """A lane for short texts, and one for those that take longer than a slice of short ones."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.short = Lane("tokenizer", tokenizer)
        self.long = Lane("tokenizer of long texts", tokenizer)

    def close(self) -> None:
        """Fail what waits; what runs ends by itself."""
        self.short.thread.close()
        self.long.thread.close()


@dataclass(frozen=True, slots=True)
class _Slice:
    """Texts that are tokenized at a time, with the position of the first, and what that costs in characters."""

    start: int
    texts: Sequence[TextInput]
    cost: int


class Intake:
    """Takes the texts of one request through the tokenizer into the queue.

    The lane's thread checks and queues what it has tokenized, so that the event loop does nothing for each text.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        job: Job,
        options: Options,
        limits: RequestLimits,
        note: Callable[[Sequence[Reading]], None],
    ) -> None:
        """
        Args:
            limits: how many sequences the model computes for a request, and how many numbers are in its answer.
            note: is told of all that is queued, from any thread.
        """
        self._loaded = loaded
        self._job = job
        self._options = options
        self._sequences_a_text = loaded.head.count_sequences(options)
        self._limits = limits
        self._note = note
        self._lock = threading.Lock()
        self._sequences = 0
        self._numbers = 0

    async def run(self, texts: Sequence[TextInput | TokenInput]) -> None:
        """Return when all is queued, or the job is over.

        Args:
            texts: all of them texts, or all of them tokenized.

        Raises:
            InputError: a text cannot be served; the message names its position.
        """
        if isinstance(texts[0], TokenInput):
            await self._take_tokens([given for given in texts if isinstance(given, TokenInput)])
            return
        items = [given for given in texts if isinstance(given, TextInput)]
        costs = [count_characters(item) * self._sequences_a_text for item in items]
        many = self._sequences_a_text > _SLICE_TEXTS
        long = [many or cost > _SLICE_CHARACTERS for cost in costs]
        lanes = self._loaded.lanes
        if not any(long):
            await self._feed(lanes.short, self._cut_slices(items, costs))
            return
        feeds = [self._feed(lanes.long, (
            _Slice(position, [items[position]], costs[position]) for position, is_long in enumerate(long) if is_long
        ))]  # fmt: skip
        if not all(long):
            feeds.append(self._feed(lanes.short, self._cut_slices(items, costs, long)))
        tasks = [asyncio.ensure_future(feed) for feed in feeds]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _cut_slices(
        self, items: Sequence[TextInput], costs: Sequence[int], left_out: Sequence[bool] = ()
    ) -> Iterator[_Slice]:
        """Texts that stand next to each other, as many as are tokenized at a time."""
        most = max(1, _SLICE_TEXTS // self._sequences_a_text)
        start, cost = 0, 0
        for position, each in enumerate(costs):
            skipped = bool(left_out) and left_out[position]
            if position > start and (skipped or position - start == most or cost + each > _SLICE_CHARACTERS):
                yield _Slice(start, items[start:position], cost)
                start, cost = position, 0
            if skipped:
                start = position + 1
            else:
                cost += each
        if start < len(items):
            yield _Slice(start, items[start:], cost)

    async def _feed(self, lane: Lane, slices: Iterator[_Slice]) -> None:
        share = Share()
        for each in slices:
            await self._loaded.queue.wait_for_room(self._job)
            if self._job.abandoned:
                return
            # A text costs something beside its characters.
            cost = each.cost + len(each.texts)
            await lane.thread.run(share, cost, partial(self._tokenize, lane.tokenizer, each))

    def _tokenize(self, tokenizer: TextTokenizer, given: _Slice) -> None:
        if self._job.abandoned:
            return
        head = self._loaded.head
        self._put(given.start, head.tokenize(tokenizer, given.texts, self._options, given.start))

    async def _take_tokens(self, texts: Sequence[TokenInput]) -> None:
        for start in range(0, len(texts), _SLICE_TEXTS):
            await self._loaded.queue.wait_for_room(self._job)
            if self._job.abandoned:
                return
            accepted = []
            for position, given in enumerate(texts[start : start + _SLICE_TEXTS], start):
                with with_text_position(position):
                    accepted.append(self._loaded.token_limits.accept(given))
            self._put(start, accepted)
            if start + _SLICE_TEXTS < len(texts):
                await asyncio.sleep(0)

    def _put(self, start: int, readings: Sequence[Reading]) -> None:
        loaded, options = self._loaded, self._options
        for position, reading in enumerate(readings, start):
            with with_text_position(position):
                loaded.head.check(reading, options.answer)
                loaded.token_limits.check(reading)
        answers_scores = options.output is not Output.LABELS or options.tensors & _SCORES
        # Those of windows are kept until the last one's are there.
        kept = [reading.text for reading in readings if answers_scores or reading.own]
        numbers = sum(map(loaded.head.count_scores, kept))
        numbers += sum(loaded.head.count_records(reading.text, options) for reading in readings)
        self._count(sum(len(reading.sequences) for reading in readings), numbers)
        if numbers:
            loaded.queue.reserve(self._job, numbers)
        self._note(readings)
        loaded.queue.put(self._job, start, readings, options)

    def _count(self, sequences: int, numbers: int) -> None:
        """
        Raises:
            LimitExceededError: the request has too many sequences or numbers.
        """
        with self._lock:
            self._sequences += sequences
            self._numbers += numbers
        what = "sequences of the model, which texts, labels and windows make"
        self._limits.check("max_request_sequences", self._sequences, what)
        what = "numbers of the answer, or scores of the vocabulary that it is made of,"
        self._limits.check("max_answer_numbers", self._numbers, what)


def count_characters(given: TextInput | TokenInput) -> int:
    """What a text costs: its characters and those of its pair, one for a word, four for a token."""
    if isinstance(given, TokenInput):
        return _CHARACTERS_A_TOKEN * len(given.input_ids)
    return len(given.text) + len(given.pair or "") + len(given.words or ())
