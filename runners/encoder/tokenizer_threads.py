"""The threads that tokenize the texts of an encoder's requests, in slices."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from runners.core.predictions import TextInput, TokenInput
from runners.encoder.fair_thread import FairThread, Flow

if TYPE_CHECKING:
    from runners.encoder.tokenization import TextTokenizer

T = TypeVar("T")
W = TypeVar("W")

# A slice takes about 10 ms to tokenize.
_SLICE_CHARACTERS = 2**14
SLICE_TEXTS = 64
# Texts of fewer characters take less time to tokenize than a thread to wake: the event loop tokenizes them itself.
_INLINE_CHARACTERS = 1000
CHARACTERS_PER_TOKEN = 4


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


class TokenizerThread:
    """A thread that tokenizes, with its own copy of the tokenizer, whose truncation settings change while it works."""

    def __init__(self, name: str, tokenizer: TextTokenizer) -> None:
        self._thread = FairThread(name)
        self._tokenizer = tokenizer.copy()
        # The event loop's thread outlives the model, and would keep the words of each model that is loaded again.
        self._inline_cost = 0 if self._tokenizer.keeps_words else _INLINE_CHARACTERS

    async def run(self, flow: Flow, cost: int, work: Callable[[TextTokenizer, W], T], item: W) -> T:
        """Call `work` with `item` in the thread, or in its place if it costs little and the thread is idle.

        Args:
            cost: in characters.
        """
        return await self._thread.run(flow, cost, partial(work, self._tokenizer, item), self._inline_cost)

    def close(self) -> None:
        self._thread.close()


class TokenizerThreads:
    """One thread for short texts, and one for texts that are longer than a slice, so that short texts do not wait."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._short = TokenizerThread("tokenizer", tokenizer)
        self._long = TokenizerThread("tokenizer of long texts", tokenizer)
        self._threads = (self._short, self._long)

    @property
    def count(self) -> int:
        return len(self._threads)

    def close(self) -> None:
        """Fail the waiting slices; a slice that is being tokenized ends normally."""
        for thread in self._threads:
            thread.close()

    def choose(self, cost: int) -> TokenizerThread:
        """The thread for work of this cost, in characters."""
        return self._long if cost > _SLICE_CHARACTERS else self._short

    async def run(
        self,
        texts: Sequence[TextInput],
        tokenize: Callable[[TextTokenizer, TextSlice], None],
        wait: Callable[[], Awaitable[bool]] | None = None,
        sequences_per_text: int = 1,
    ) -> None:
        """Tokenize the texts of a request in slices; return when all are done, or `wait` has ended it.

        Args:
            tokenize: called in a thread, or in its place.
            wait: awaited before each slice; returns whether the request goes on.
            sequences_per_text: how many sequences a text makes; each costs its characters.
        """
        costs = [count_characters(text) * sequences_per_text for text in texts]
        has_many = sequences_per_text > SLICE_TEXTS
        is_long = [has_many or cost > _SLICE_CHARACTERS for cost in costs]
        max_texts = max(1, SLICE_TEXTS // sequences_per_text)
        if not any(is_long):
            await _run_slices(self._short, _cut_slices(texts, costs, max_texts), tokenize, wait)
            return
        long_slices = (
            TextSlice(position, [texts[position]], costs[position]) for position, long in enumerate(is_long) if long
        )
        feeds = [_run_slices(self._long, long_slices, tokenize, wait)]
        if not all(is_long):
            feeds.append(_run_slices(self._short, _cut_slices(texts, costs, max_texts, is_long), tokenize, wait))
        tasks = [asyncio.ensure_future(feed) for feed in feeds]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()


async def _run_slices(
    thread: TokenizerThread,
    slices: Iterator[TextSlice],
    tokenize: Callable[[TextTokenizer, TextSlice], None],
    wait: Callable[[], Awaitable[bool]] | None,
) -> None:
    flow = Flow()
    for each in slices:
        if wait is not None and not await wait():
            return
        # A text costs time beside its characters.
        await thread.run(flow, each.cost + len(each.texts), tokenize, each)


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
