"""Tokenizes the texts of a request in slices and queues them, a few batches ahead of the model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from runners.core.errors import with_text_position
from runners.core.predictions import LOGITS, PROBABILITIES, AnswerForm, Options, TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.encoder.fair_thread import FairThread, Flow

if TYPE_CHECKING:
    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.queue_entries import PendingRequest
    from runners.encoder.sequences import EncodedText
    from runners.encoder.tokenization import TextTokenizer

# A slice takes about 10 ms to tokenize.
_SLICE_CHARACTERS = 2**14
_SLICE_TEXTS = 64
# Texts of fewer characters take less time to tokenize than a thread to wake: the event loop tokenizes them itself.
_INLINE_CHARACTERS = 1000
_CHARACTERS_PER_TOKEN = 4
_SCORES = frozenset({LOGITS, PROBABILITIES})


class TokenizerThread:
    """A thread that tokenizes, with its own copy of the tokenizer, whose truncation settings change while it works."""

    def __init__(self, name: str, tokenizer: TextTokenizer) -> None:
        self.thread = FairThread(name)
        self.tokenizer = tokenizer.copy()


class TokenizerThreads:
    """One thread for short texts, and one for texts that are longer than a slice, so that short texts do not wait."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self.short = TokenizerThread("tokenizer", tokenizer)
        self.long = TokenizerThread("tokenizer of long texts", tokenizer)

    def close(self) -> None:
        """Fail the waiting slices; a slice that is being tokenized ends normally."""
        self.short.thread.close()
        self.long.thread.close()


@dataclass(frozen=True, slots=True)
class _Slice:
    """Consecutive texts that are tokenized together.

    Attributes:
        start: position of the first text in the request.
        cost: in characters.
    """

    start: int
    texts: Sequence[TextInput]
    cost: int


class RequestTokenizer:
    """Tokenizes the texts of one request and puts them into the queue.

    The tokenizer threads also check and queue what they have tokenized, so that the event loop has no work per text. It
    does that itself for a few hundred characters while the thread is idle.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        request: PendingRequest,
        options: Options,
        limits: RequestLimits,
        on_queue: Callable[[Sequence[EncodedText]], None],
    ) -> None:
        """
        Args:
            limits: they bound the sequences of a request, and the numbers of its answer.
            on_queue: called with all texts that are queued, from any thread.
        """
        self._loaded = loaded
        self._request = request
        self._options = options
        self._sequences_per_text = loaded.encoder_task.count_sequences(options)
        self._limits = limits
        self._on_queue = on_queue
        self._lock = threading.Lock()
        self._sequences = 0
        self._numbers = 0

    async def run(self, texts: Sequence[TextInput | TokenInput]) -> None:
        """Return when all texts are queued, or the request is over.

        Args:
            texts: either all texts or all tokenized texts.

        Raises:
            InputError: a text cannot be served; the message names its position.
        """
        if isinstance(texts[0], TokenInput):
            await self._queue_token_inputs([text for text in texts if isinstance(text, TokenInput)])
            return
        items = [text for text in texts if isinstance(text, TextInput)]
        costs = [count_characters(item) * self._sequences_per_text for item in items]
        has_many_labels = self._sequences_per_text > _SLICE_TEXTS
        is_long = [has_many_labels or cost > _SLICE_CHARACTERS for cost in costs]
        threads = self._loaded.tokenizer_threads
        if not any(is_long):
            await self._tokenize_slices(threads.short, self._cut_slices(items, costs))
            return
        long_slices = (
            _Slice(position, [items[position]], costs[position]) for position, long in enumerate(is_long) if long
        )
        feeds = [self._tokenize_slices(threads.long, long_slices)]
        if not all(is_long):
            feeds.append(self._tokenize_slices(threads.short, self._cut_slices(items, costs, is_long)))
        tasks = [asyncio.ensure_future(feed) for feed in feeds]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _cut_slices(
        self, items: Sequence[TextInput], costs: Sequence[int], skipped: Sequence[bool] = ()
    ) -> Iterator[_Slice]:
        """Slices of consecutive texts, without the skipped ones."""
        max_texts = max(1, _SLICE_TEXTS // self._sequences_per_text)
        start, cost = 0, 0
        for position, each in enumerate(costs):
            is_skipped = bool(skipped) and skipped[position]
            if position > start and (is_skipped or position - start == max_texts or cost + each > _SLICE_CHARACTERS):
                yield _Slice(start, items[start:position], cost)
                start, cost = position, 0
            if is_skipped:
                start = position + 1
            else:
                cost += each
        if start < len(items):
            yield _Slice(start, items[start:], cost)

    async def _tokenize_slices(self, thread: TokenizerThread, slices: Iterator[_Slice]) -> None:
        flow = Flow()
        # The event loop's thread outlives the model, and would keep the words of each model that is loaded again.
        inline_cost = 0 if thread.tokenizer.keeps_words else _INLINE_CHARACTERS
        for each in slices:
            await self._loaded.queue.wait_for_room(self._request)
            if self._request.abandoned:
                return
            # A text costs time beside its characters.
            cost = each.cost + len(each.texts)
            work = partial(self._tokenize, thread.tokenizer, each)
            await thread.thread.run(flow, cost, work, inline_cost)

    def _tokenize(self, tokenizer: TextTokenizer, texts: _Slice) -> None:
        """Called in a tokenizer thread, or in its place."""
        if self._request.abandoned:
            return
        task = self._loaded.encoder_task
        self._put(texts.start, task.tokenize(tokenizer, texts.texts, self._options, texts.start))

    async def _queue_token_inputs(self, texts: Sequence[TokenInput]) -> None:
        for start in range(0, len(texts), _SLICE_TEXTS):
            await self._loaded.queue.wait_for_room(self._request)
            if self._request.abandoned:
                return
            encoded_texts = []
            for position, text in enumerate(texts[start : start + _SLICE_TEXTS], start):
                with with_text_position(position):
                    encoded_texts.append(self._loaded.token_limits.encode(text))
            self._put(start, encoded_texts)
            if start + _SLICE_TEXTS < len(texts):
                await asyncio.sleep(0)

    def _put(self, start: int, encoded_texts: Sequence[EncodedText]) -> None:
        """Check texts, reserve memory for their answers, and queue them."""
        loaded, options = self._loaded, self._options
        for position, encoded in enumerate(encoded_texts, start):
            with with_text_position(position):
                loaded.encoder_task.check(encoded, options.answer)
                loaded.token_limits.check(encoded)
        numbers = sum(map(self._count_numbers, encoded_texts))
        self._count(sum(len(encoded.sequences) for encoded in encoded_texts), numbers)
        if numbers:
            loaded.queue.reserve(self._request, numbers)
        self._on_queue(encoded_texts)
        loaded.queue.put(self._request, start, encoded_texts, options)

    def _count_numbers(self, encoded: EncodedText) -> int:
        """How many numbers are kept for a text until it is answered."""
        task, options = self._loaded.encoder_task, self._options
        answers_scores = options.form is not AnswerForm.LABELS or options.outputs & _SCORES
        # The scores of windows are kept until the last window's are there.
        scores = task.count_scores(encoded.text) if answers_scores or encoded.kept_tokens else 0
        return scores + task.count_records(encoded.text, options)

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


def count_characters(text: TextInput | TokenInput) -> int:
    """What a text costs: its characters and those of its pair, one more per word, and four per token."""
    if isinstance(text, TokenInput):
        return _CHARACTERS_PER_TOKEN * len(text.input_ids)
    return len(text.text) + len(text.pair or "") + len(text.words or ())
