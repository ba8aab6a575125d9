"""The queue between the requests and the model. An entry is one sequence; a batch is made when the model is free.

There is no timer: a batch is the first entries of the queue, up to a budget of tokens and of texts. An idle model
starts at once, and a busy model finds a full batch waiting.

Entries are ordered by tags. The tag of a small request's entries is described in `EntryOrder`. The tag of another entry
is the number of tokens that had been served when its request arrived, so older requests go first. The part of a request
that exceeds one batch gets later tags, as in start-time fair queueing: newer, smaller requests overtake it, and since
tags only grow, it waits for a bounded time. A tag of that part is never earlier than the time when its entry is queued:
a request whose texts take long to tokenize has no claim to the time that others have used meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from time import perf_counter
from typing import TYPE_CHECKING

from runners.core.admission import Admission
from runners.core.errors import ModelNotReadyError
from runners.core.sent_answers import release_when_sent
from runners.core.token_budget import TokenBudget
from runners.encoder.batch_mode import BatchMode
from runners.encoder.queue_entries import Entry, EntryOrder, PendingRequest, refuse
from runners.encoder.sequences import EncodedText

if TYPE_CHECKING:
    from runners.core.metrics import QueueMetrics
    from runners.core.predictions import Options
    from runners.core.request_limits import RequestLimits

# Factor on the cost of entries beyond the first batch of a request; docs/explanation/engine.md has its effect.
_LARGE_REQUEST_PENALTY = 4
MAX_BATCH_TEXTS = 256
# A request is small if it is a single text, or has at most this many texts and this share of a batch's tokens.
_SMALL_REQUEST_TEXTS = 64
_SMALL_REQUEST_SHARE = 1 / 3
# How many waiting entries are searched for texts of similar or equal length.
_LENGTH_CANDIDATES = 512
# A padded batch has at most this many slots (texts times the longest) for each token, and so many beside.
_SLOTS_PER_TOKEN = 1.25
_SLOTS_BESIDE = 512
# A request's next texts are tokenized when fewer of its tokens wait than fit into this many batches.
_BATCHES_AHEAD = 4
# All open answers together may have as many numbers as this many of the largest answers.
_MAX_ANSWERS = 8
# Abandoned entries are removed when there are more than this, and more than half of all entries.
_MANY_ABANDONED = 1024
_LONGEST_RETRY = 60.0


class BatchQueue:
    """The texts that wait for the model; thread-safe.

    Attributes:
        budget: of a batch; a longer text is a batch alone.
        admission: counts the requests under way and what they hold.
    """

    def __init__(
        self, max_batch_tokens: int, limits: RequestLimits, metrics: QueueMetrics, changed: threading.Condition
    ) -> None:
        """
        Args:
            max_batch_tokens: budget of a batch; a longer text is a batch alone.
            limits: most requests, characters and tokens under way; requests beyond them are refused.
            metrics: the gauges of the texts that wait and run.
            changed: the lock of this queue; notified when a text is queued.
        """
        self.budget = TokenBudget(max_batch_tokens)
        # Tokens and numbers are counted by other threads too, under this queue's lock.
        self.admission = Admission(limits, self._seconds_until_empty, _MAX_ANSWERS)
        self._entries = EntryOrder()
        self._metrics = metrics
        metrics.watch(self.admission)
        self._waiting_texts = 0
        self._running_texts = 0
        self._abandoned_texts = 0
        self._ages = count()
        self._served = 0.0
        self._tokens_per_second = 0.0
        self._closed = False
        self._changed = changed

    @property
    def max_batch_tokens(self) -> int:
        """The budget of a batch now."""
        return self.budget.tokens

    def admit(self, texts: int, characters: int) -> PendingRequest:
        """Admit a request before any work is done for it; call `release` when it is over.

        Args:
            texts: number of its texts.
            characters: number of characters of all its texts (see `count_characters`).

        Raises:
            OverloadedError: too many requests, characters or tokens are under way.
        """
        self.admission.enter(characters)
        return PendingRequest(texts, characters, self._served)

    def reserve(self, request: PendingRequest, numbers: int) -> None:
        """Reserve memory for numbers of a request's answer, until it has been sent; from any thread.

        Raises:
            OverloadedError: all open answers together have too many numbers.
        """
        with self._changed:
            self._reserve(request, numbers)

    def reserve_found(self, request: PendingRequest, numbers: int, what: str = "numbers of the answer") -> None:
        """As `reserve`, for numbers that are known only once a part of the work is done; from any thread.

        Args:
            what: what the answer has, for the error.

        Raises:
            LimitExceededError: the request's answer has more numbers than one may have.
            OverloadedError: all open answers together have too many numbers.
        """
        with self._changed:
            self.admission.limits.check("max_answer_numbers", request.numbers + numbers, what)
            self._reserve(request, numbers)

    def _reserve(self, request: PendingRequest, numbers: int) -> None:
        if request.abandoned:
            # It may have been released already.
            return
        self.admission.numbers.check(numbers, self._seconds_until_empty, held_by_request=request.numbers)
        request.numbers += numbers
        self.admission.numbers.held += numbers

    def release(self, request: PendingRequest) -> None:
        """End a request, answered or not; its entries that still wait are abandoned."""
        self.admission.leave(request.characters)
        if not request.result.cancel() and not request.result.cancelled():
            # Mark its error as retrieved; the caller may have got another error.
            request.result.exception()
        with self._changed:
            numbers = request.numbers
        if numbers:
            release_when_sent(partial(self._release_numbers, numbers))
        if request.waiting:
            with self._changed:
                self._waiting_texts -= request.waiting
                self.admission.tokens.held -= request.waiting_tokens
                self._abandoned_texts += request.waiting
                request.waiting = request.waiting_tokens = 0
                self._sweep()
                self._update_gauges()

    def _release_numbers(self, numbers: int) -> None:
        with self._changed:
            self.admission.numbers.held -= numbers

    async def wait_for_room(self, request: PendingRequest) -> None:
        """Wait until few of the request's tokens are in the queue, or until the request is over."""
        with self._changed:
            if self._closed or request.waiting_tokens <= self._ahead:
                return
            request.wants_room = True
        await request.wait()

    def put(
        self, request: PendingRequest, first_position: int, encoded_texts: Iterable[EncodedText], options: Options
    ) -> None:
        """Queue consecutive texts of a request; from any thread.

        Args:
            first_position: position of the first text in the request.
        """
        with self._changed:
            if self._closed:
                request.deliver([(first_position, ModelNotReadyError.of_shutdown())])
            if self._closed or request.abandoned:
                return
            entries = [
                self._make_entry(request, position, encoded, part, options)
                for position, encoded in enumerate(encoded_texts, first_position)
                for part in range(len(encoded.sequences))
            ]
            if (record := request.record) is not None:
                record.queued = record.queued or perf_counter()
                record.tokens += sum(entry.tokens for entry in entries)
            self._set_tags(request, entries)
            for entry in entries:
                self._push(entry)
            self._update_gauges()
            self._changed.notify()

    def _make_entry(
        self, request: PendingRequest, position: int, encoded: EncodedText, part: int, options: Options
    ) -> Entry:
        tokens = len(encoded.sequences[part].input_ids)
        cost = max(tokens, self.max_batch_tokens / MAX_BATCH_TEXTS)
        return Entry(0.0, next(self._ages), request, position, encoded, part, options, tokens, cost)

    def _set_tags(self, request: PendingRequest, entries: Sequence[Entry]) -> None:
        """Set the tags of a request's next entries."""
        budget = self.max_batch_tokens
        cost = sum(entry.cost for entry in entries)
        is_small = request.texts <= _SMALL_REQUEST_TEXTS and request.queued_cost + cost <= budget * _SMALL_REQUEST_SHARE
        if is_small or (request.texts == 1 and len(entries) == 1):
            request.queued_cost += cost
            tag = self._entries.time + min(cost, budget)
            for entry in entries:
                entry.is_small, entry.tag, entry.cost = True, tag, min(entry.cost, budget)
            return
        for entry in entries:
            if request.queued_cost > budget:
                request.tag = max(request.tag, self._served)
            entry.tag = request.tag
            request.queued_cost += entry.cost
            request.tag += _LARGE_REQUEST_PENALTY * max(0, min(entry.cost, request.queued_cost - budget))

    def take(self, mode: BatchMode = BatchMode.PACKED) -> list[Entry]:
        """The next batch; empty if nothing waits. Call `finish` after it.

        Args:
            mode: PACKED takes the first entries; PADDED and EQUAL_LENGTH take entries of a length similar or equal to
                the first entry's; ONE_BY_ONE takes the first entry alone.
        """
        with self._changed:
            if not self._entries:
                return []
            batch = self._take_batch(mode)
            if batch:
                self._served += sum(entry.cost for entry in batch)
                self._entries.charge(batch)
                self._running_texts += len(batch)
            # Even without a batch: abandoned entries were removed.
            self._update_gauges()
            return batch

    def finish(self, batch: Sequence[Entry]) -> None:
        """End a batch that was taken, successful or not."""
        with self._changed:
            self._running_texts -= len(batch)
            # Always, since the remaining entries may be abandoned, and then no batch follows.
            self._update_gauges()

    def record_throughput(self, tokens: int, seconds: float) -> None:
        """Update the moving average of tokens per second, from which Retry-After is computed."""
        speed = tokens / max(seconds, 1e-6)
        self._tokens_per_second += 0.2 * (speed - self._tokens_per_second) if self._tokens_per_second else speed

    def close(self) -> None:
        """Fail the waiting requests."""
        with self._changed:
            self._closed = True
            refuse(self._entries)
            for entry in self._entries:
                entry.request.waiting = entry.request.waiting_tokens = 0
            self._entries.clear()
            self.admission.tokens.held = 0
            self._waiting_texts = 0
            self._abandoned_texts = 0
            self._update_gauges()

    @property
    def has_waiting(self) -> bool:
        """Whether entries wait, abandoned ones included."""
        return len(self._entries) > 0

    @property
    def _ahead(self) -> int:
        """Most tokens of one request that wait, before its next texts are tokenized."""
        return _BATCHES_AHEAD * self.max_batch_tokens

    def _push(self, entry: Entry) -> None:
        self._entries.push(entry)
        self.admission.tokens.held += entry.tokens
        self._waiting_texts += 1
        entry.request.waiting += 1
        entry.request.waiting_tokens += entry.tokens

    def _pop(self) -> Entry:
        entry = self._entries.pop()
        self._count_out(entry)
        return entry

    def _count_out(self, entry: Entry) -> None:
        """Count an entry that has left the queue."""
        request = entry.request
        if not request.waiting:
            self._abandoned_texts -= 1
            return
        self.admission.tokens.held -= entry.tokens
        self._waiting_texts -= 1
        request.waiting -= 1
        request.waiting_tokens -= entry.tokens
        if request.wants_room and request.waiting_tokens <= self._ahead:
            request.give_room()

    def _sweep(self) -> None:
        """Remove abandoned entries if there are many; otherwise they would stay until their turn comes."""
        if self._abandoned_texts > max(_MANY_ABANDONED, len(self._entries) // 2):
            self._entries.keep(lambda entry: entry.request.waiting > 0)
            self._abandoned_texts = 0

    def _update_gauges(self) -> None:
        self._metrics.waiting.set(self._waiting_texts)
        self._metrics.running.set(self._running_texts)

    def _next(self) -> Entry | None:
        """The first entry that is not abandoned; removes those before it."""
        while (entry := self._entries.first()) is not None and entry.request.abandoned:
            self._pop()
        return entry

    def _take_batch(self, mode: BatchMode) -> list[Entry]:
        self._entries.start_batch()
        match mode:
            case BatchMode.PACKED:
                return self._take_oldest(MAX_BATCH_TEXTS)
            case BatchMode.ONE_BY_ONE:
                return self._take_oldest(1)
            case BatchMode.PADDED | BatchMode.EQUAL_LENGTH:
                return self._take_by_length(mode)

    def _take_oldest(self, most: int) -> list[Entry]:
        batch: list[Entry] = []
        budget = self.max_batch_tokens
        while len(batch) < most and (entry := self._next()) is not None:
            if batch and entry.tokens > budget:
                break
            batch.append(self._pop())
            budget -= entry.tokens
        return batch

    def _take_by_length(self, mode: BatchMode) -> list[Entry]:
        candidates = self._look()
        if not candidates:
            return []
        first = candidates[0]
        if mode is BatchMode.EQUAL_LENGTH:
            candidates = [entry for entry in candidates if entry.tokens == first.tokens]
        else:
            # The sort is stable: entries of the same length stay in the order of the queue.
            candidates.sort(key=lambda entry: abs(entry.tokens - first.tokens))
        longest = tokens = size = 0
        for entry in candidates[:MAX_BATCH_TEXTS]:
            longest, tokens = max(longest, entry.tokens), tokens + entry.tokens
            if size and longest * (size + 1) > min(self.max_batch_tokens, _SLOTS_PER_TOKEN * tokens + _SLOTS_BESIDE):
                break
            size += 1
        self._remove(candidates[:size])
        return candidates[:size]

    def _look(self) -> list[Entry]:
        """The entries that a batch is chosen from, in order and not abandoned; it begins with the first."""
        while True:
            candidates = self._entries.look(_LENGTH_CANDIDATES)
            abandoned = [entry for entry in candidates if entry.request.abandoned]
            if not abandoned:
                return candidates
            self._remove(abandoned)

    def _remove(self, entries: Sequence[Entry]) -> None:
        self._entries.remove(entries)
        for entry in entries:
            self._count_out(entry)

    def _seconds_until_empty(self) -> float:
        """Estimated time until the waiting tokens have run, for Retry-After."""
        seconds = self.admission.tokens.held / self._tokens_per_second if self._tokens_per_second else 1.0
        return min(_LONGEST_RETRY, max(1.0, seconds))
