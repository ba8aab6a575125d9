"""The threads that tokenize the texts of an encoder's requests, in slices."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from runners.core.predictions import TextInput, TokenInput
from runners.encoder.fair_threads import FairThreads, Flow, Work

if TYPE_CHECKING:
    from runners.encoder.tokenization import TextTokenizer

Item = TypeVar("Item")
Result = TypeVar("Result")
Tokenized = TypeVar("Tokenized")

# A slice takes about 10 ms to tokenize.
_SLICE_CHARACTERS = 2**14
SLICE_TEXTS = 64
# The slices of a request that several threads share.
_MIN_SLICE_TEXTS = 16
# What a text costs beside its characters, in characters.
_TEXT_COST = _SLICE_CHARACTERS // SLICE_TEXTS
# Slices that wait together are tokenized together up to the cost of the largest slice.
_GROUP_COST = _SLICE_CHARACTERS + SLICE_TEXTS * _TEXT_COST
# Another thread is woken for each such part of the work under way: the smallest slice, or ten texts of 150 characters.
_THREAD_COST = _MIN_SLICE_TEXTS * _TEXT_COST
# What the event loop tokenizes itself in one of its iterations: that takes less time than a thread to wake.
_INLINE_COST = 1000 + _TEXT_COST
# Of each text the GIL is held for about a fourth of the time, so that more threads would wait for each other.
_MAX_THREADS = 4
# The event loop and the device thread.
_OTHER_THREADS = 2
CHARACTERS_PER_TOKEN = 4


def disable_library_threads() -> None:
    """Keep the `tokenizers` library from encoding in threads of its own; called before a model is loaded.

    It has one for each core of the machine, whatever share of it this process has; they never end, and BPE keeps words
    of the texts in each.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


@dataclass(frozen=True, slots=True)
class TextSlice:
    """Consecutive texts of a request that are tokenized together.

    Attributes:
        start: position of the first text in the request.
        cost: in characters.
    """

    start: int
    texts: Sequence[TextInput]
    cost: int


@dataclass(frozen=True, slots=True)
class SliceWork(Generic[Tokenized]):
    """How the slices of a request are tokenized.

    Attributes:
        tokenize: called with the position of the first text; returns what each text becomes.
        finish: called with the position of a slice's first text and what its texts have become.
        is_over: whether the request has ended; then its texts are not tokenized.
        kind: slices of requests of an equal kind are tokenized in one call; None for slices that are tokenized alone.
    """

    tokenize: Callable[[TextTokenizer, Sequence[TextInput], int], Sequence[Tokenized]]
    finish: Callable[[int, Sequence[Tokenized]], None]
    is_over: Callable[[], bool]
    kind: object = None


_RequestSlice = tuple[SliceWork[Tokenized], TextSlice]
_SlicePiece = Work["TextTokenizer", _RequestSlice[Tokenized], Sequence[Tokenized], None]


class TokenizerThreads:
    """Threads for short texts, and others for texts that are longer than a slice, so that short texts do not wait.

    Each has its own copy of the tokenizer, whose truncation settings change while it works. So has the event loop.
    """

    def __init__(self, tokenizer: TextTokenizer, cores: int = 1) -> None:
        """
        Args:
            cores: those of this process.
        """
        count = min(_MAX_THREADS, max(1, cores - _OTHER_THREADS))
        self._short = _start("tokenizer", tokenizer, count)
        self._long = _start("tokenizer of long texts", tokenizer, ceil(count / 2))
        self._inline = _InlineTokenizer(tokenizer)

    @property
    def count(self) -> int:
        return len(self._short) + len(self._long)

    def close(self) -> None:
        """Fail the waiting slices; a slice that is being tokenized ends normally."""
        self._inline.close()
        self._short.close()
        self._long.close()

    async def call(
        self, flow: Flow, cost: int, function: Callable[[TextTokenizer, Item], Result], item: Item
    ) -> Result:
        """Call a function in a thread, or in its place if it costs little.

        Args:
            cost: in characters.
        """

        def call(tokenizer: TextTokenizer, items: Sequence[Item]) -> list[Result]:
            return [function(tokenizer, item) for item in items]

        threads = self._long if cost > _SLICE_CHARACTERS else self._short
        return await self._run(threads, flow, cost + _TEXT_COST, Work(call, _take_computed), item)

    async def run(
        self,
        texts: Sequence[TextInput],
        work: SliceWork[Any],
        wait: Callable[[], Awaitable[bool]] | None = None,
        sequences_per_text: int = 1,
    ) -> None:
        """Tokenize the texts of a request in slices; return when all are done, or `wait` has ended it.

        Args:
            wait: awaited before each slice; returns whether the request goes on.
            sequences_per_text: how many sequences a text makes; each costs its characters.
        """
        costs = [count_characters(text) * sequences_per_text for text in texts]
        has_many = sequences_per_text > SLICE_TEXTS
        is_long = [has_many or cost > _SLICE_CHARACTERS for cost in costs]
        share = max(_MIN_SLICE_TEXTS, ceil(len(texts) / len(self._short)))
        max_texts = max(1, min(SLICE_TEXTS, share) // sequences_per_text)
        feeds = []
        if any(is_long):
            alone = (TextSlice(at, [texts[at]], costs[at]) for at, long in enumerate(is_long) if long)
            feeds += self._feed(self._long, alone, sum(is_long), work, wait)
        if not all(is_long):
            slices = _cut_slices(texts, costs, max_texts, is_long)
            feeds += self._feed(self._short, slices, ceil((len(texts) - sum(is_long)) / max_texts), work, wait)
        if len(feeds) == 1:
            await feeds[0]
            return
        tasks = [asyncio.ensure_future(feed) for feed in feeds]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _feed(
        self,
        threads: FairThreads[TextTokenizer],
        slices: Iterator[TextSlice],
        count: int,
        work: SliceWork[Any],
        wait: Callable[[], Awaitable[bool]] | None,
    ) -> list[Coroutine[Any, Any, None]]:
        """What tokenizes the slices: one slice after another in as many threads as there are.

        Args:
            count: about how many slices there are.
        """
        flow = Flow()
        return [self._run_slices(threads, flow, slices, work, wait) for _ in range(min(len(threads), count))]

    async def _run_slices(
        self,
        threads: FairThreads[TextTokenizer],
        flow: Flow,
        slices: Iterator[TextSlice],
        work: SliceWork[Any],
        wait: Callable[[], Awaitable[bool]] | None,
    ) -> None:
        piece: _SlicePiece[Any] = Work(_tokenize_slices, _finish_slice, work.kind)
        while wait is None or await wait():
            each = next(slices, None)
            if each is None:
                return
            await self._run(threads, flow, each.cost + _TEXT_COST * len(each.texts), piece, (work, each))

    async def _run(
        self,
        threads: FairThreads[TextTokenizer],
        flow: Flow,
        cost: int,
        work: Work[TextTokenizer, Item, Any, Result],
        item: Item,
    ) -> Result:
        if not threads.is_waiting and self._inline.enter(cost):
            return self._inline.run(work, item)
        return await threads.run(flow, cost, work, item)


class _InlineTokenizer:
    """The tokenizer of the event loop, which tokenizes a little in each of its iterations.

    What comes beyond that in one iteration waits for a thread, and is tokenized there together.
    """

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer.copy()
        # The event loop's thread outlives the model, and would keep the words of each model that is loaded again.
        self._limit = 0 if tokenizer.keeps_words else _INLINE_COST
        self._spent = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        # There may be several event loops.
        self._in_use = threading.Lock()

    def enter(self, cost: int) -> bool:
        """Whether work of this cost is done at once; then call `run`."""
        loop = asyncio.get_running_loop()
        # Another event loop may have ended before its next iteration.
        spent = self._spent if loop is self._loop else 0
        if spent + cost >= self._limit or not self._in_use.acquire(blocking=False):
            return False
        if not spent:
            self._loop = loop
            loop.call_soon(self._reset)
        self._spent = spent + cost
        return True

    def run(self, work: Work[TextTokenizer, Item, Any, Result], item: Item) -> Result:
        try:
            return work.run(self._tokenizer, item)
        finally:
            self._in_use.release()

    def close(self) -> None:
        self._limit = 0

    def _reset(self) -> None:
        self._spent = 0


def _start(name: str, tokenizer: TextTokenizer, count: int) -> FairThreads[TextTokenizer]:
    return FairThreads(name, [tokenizer.copy() for _ in range(count)], _GROUP_COST, _THREAD_COST)


def _take_computed(_: Any, computed: Result) -> Result:
    return computed


def _tokenize_slices(tokenizer: TextTokenizer, slices: Sequence[_RequestSlice[Tokenized]]) -> list[Sequence[Tokenized]]:
    """What the texts of each slice become; slices of requests that have ended are empty."""
    texts = [[] if work.is_over() else each.texts for work, each in slices]
    together = [text for each in texts for text in each]
    work, first = slices[0]
    tokenized = iter(work.tokenize(tokenizer, together, first.start) if together else ())
    return [[next(tokenized) for _ in each] for each in texts]


def _finish_slice(request_slice: _RequestSlice[Tokenized], tokenized: Sequence[Tokenized]) -> None:
    work, each = request_slice
    if tokenized:
        work.finish(each.start, tokenized)


def _cut_slices(
    texts: Sequence[TextInput], costs: Sequence[int], max_texts: int, skipped: Sequence[bool] = ()
) -> Iterator[TextSlice]:
    """Slices of consecutive texts, without the skipped ones."""
    start, cost = 0, 0
    for position, each in enumerate(costs):
        is_skipped = bool(skipped) and skipped[position]
        if position > start and (is_skipped or position - start == max_texts or cost + each > _SLICE_CHARACTERS):
            yield TextSlice(start, texts[start:position], cost)
            start, cost = position, 0
        if is_skipped:
            start = position + 1
        else:
            cost += each
    if start < len(texts):
        yield TextSlice(start, texts[start:], cost)


def count_characters(text: TextInput | TokenInput) -> int:
    """What a text costs: its characters and those of its pair, one more per word, and four per token."""
    if isinstance(text, TokenInput):
        return CHARACTERS_PER_TOKEN * len(text.input_ids)
    return len(text.text) + len(text.pair or "") + len(text.words or ())
