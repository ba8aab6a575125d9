"""The queue between the requests and the model: one entry a text or part of one, batches made when the model is free.

No timer: a batch is whatever waits at that moment, in order, up to a budget of tokens and of texts. A model that is
idle starts at once, a busy one finds a full batch waiting.

Order is by a tag that an entry gets when it is queued: the tokens that had been served when its request came, so that
older requests go first. A request of more than one batch pays for the rest of its texts with later tags (the idea of
start-time fair queueing): newer, smaller requests overtake it, and since tags only grow it is never overtaken for ever.
What exceeds a batch is never earlier than the moment it is queued: a request whose texts take long to tokenize has no
claim to the time that others used meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import partial
from itertools import count
from typing import NoReturn

from runners.core.errors import ModelNotReadyError, OverloadedError
from runners.core.metrics import QueueMetrics
from runners.core.predictions import Options
from runners.core.request_limits import RequestLimits
from runners.core.sent_answers import release_when_sent
from runners.encoder.queue_entries import Entry, EntryOrder, Job
from runners.encoder.sequences import Reading

# How much later than one of a small request a text of a large one is: it gets at least 1 of so many parts of the model.
_LARGE_REQUEST_PENALTY = 4
_MAX_BATCH_TEXTS = 256
# A request of so few texts, which have so small a part of a batch's tokens, goes first, as does a text alone.
_SMALL_REQUEST_TEXTS = 64
_SMALL_REQUEST_SHARE = 1 / 3
# Among how many waiting texts a batch looks for those of like or equal length.
_LENGTH_CANDIDATES = 128
# A request's next texts are tokenized once fewer of its tokens wait than so many batches have.
_BATCHES_AHEAD = 4
# All answers that are made, or sent, may have as many numbers as so many of the largest.
_ANSWERS = 8
# Entries that nobody waits for are swept out once they are so many and half of all.
_MANY_ABANDONED = 1024
_LONGEST_RETRY = 60.0


class BatchMode(StrEnum):
    """Which texts may share a batch, and how they lie in it."""

    # Any, end to end.
    PACKED = "packed"
    # Any, filled up to the longest; best of like length.
    PADDED = "padded"
    EQUAL_LENGTH = "equal length"
    ONE_BY_ONE = "one by one"


class BatchQueue:
    """Texts wait here for the model; thread-safe."""

    def __init__(self, max_batch_tokens: int, limits: RequestLimits, metrics: QueueMetrics) -> None:
        """
        Args:
            max_batch_tokens: budget of a batch; a longer text is a batch of its own.
            limits: how many requests, characters and tokens may be under way; what exceeds them is refused.
            metrics: the gauges of the texts that wait and run.
        """
        self._max_batch_tokens = max_batch_tokens
        self._limits = limits
        # How many are under way, and of how many characters.
        self.requests = 0
        self._characters = 0
        # Of all answers that are made, or sent.
        self._numbers = 0
        self._entries = EntryOrder()
        self._waiting_tokens = 0
        self._metrics = metrics
        self._waiting_texts = 0
        self._running_texts = 0
        self._abandoned_texts = 0
        self._ages = count()
        self._served = 0.0
        self._tokens_a_second = 0.0
        self._closed = False
        self._changed = threading.Condition()

    def admit(self, texts: int, characters: int) -> Job:
        """Let a request in, before any work is done for it; `release` must follow.

        Args:
            texts: how many answers it wants.
            characters: of all its texts and pairs, four for a token of what is tokenized already.

        Raises:
            OverloadedError: too many requests, or requests of too many characters or tokens, are under way.
        """
        if self.requests >= self._limits.max_concurrent_requests:
            self._refuse(
                f"the server is busy with {self.requests} requests, which is the most it takes "
                "(max_concurrent_requests)"
            )
        # A request alone is only bounded by what a request may have.
        if self.requests and self._characters + characters > self._limits.max_queue_characters:
            self._refuse(
                f"the server is busy with {self._characters} characters of texts; with the {characters} of this "
                f"request they are more than the {self._limits.max_queue_characters} it takes"
            )
        if self._waiting_tokens > self._limits.max_queue_tokens:
            self._refuse(
                f"the server is busy with {self._waiting_tokens} tokens, more than the {self._limits.max_queue_tokens} "
                "it takes"
            )
        self.requests += 1
        self._characters += characters
        return Job(texts, characters, self._served)

    def reserve(self, job: Job, numbers: int) -> None:
        """Take so many more numbers of a job's answer into the account, until it has been sent; from any thread.

        Raises:
            OverloadedError: the answers of all jobs together have too many.
        """
        most = _ANSWERS * self._limits.max_answer_numbers
        with self._changed:
            if job.abandoned:
                # It may have been released meanwhile.
                return
            if self._numbers + numbers > most and self._numbers > job.numbers:
                self._refuse(f"the server is busy with answers of {self._numbers} numbers, and {most} is what it takes")
            job.numbers += numbers
            self._numbers += numbers

    def _refuse(self, reason: str) -> NoReturn:
        raise OverloadedError(f"{reason}; try again later", retry_after=self._drain_seconds())

    def release(self, job: Job) -> None:
        """The request of this job is over, however it ended; what is left of it will not run."""
        self.requests -= 1
        self._characters -= job.characters
        if not job.result.cancel() and not job.result.cancelled():
            # Its error may not be the one that its caller is told.
            job.result.exception()
        with self._changed:
            numbers = job.numbers
        if numbers:
            release_when_sent(partial(self._release_numbers, numbers))
        if job.waiting:
            with self._changed:
                self._waiting_texts -= job.waiting
                self._waiting_tokens -= job.waiting_tokens
                self._abandoned_texts += job.waiting
                job.waiting = job.waiting_tokens = 0
                self._sweep()
                self._update_gauges()

    def _release_numbers(self, numbers: int) -> None:
        with self._changed:
            self._numbers -= numbers

    async def wait_for_room(self, job: Job) -> None:
        """Wait until few of the job's tokens wait for the model, or until the job is over."""
        with self._changed:
            if self._closed or job.waiting_tokens <= self._ahead:
                return
            job.wants_room = True
        await job.wait()

    def put(self, job: Job, first_position: int, readings: Iterable[Reading], options: Options) -> None:
        """Queue texts of a job, which stand at `first_position` and after in its request; from any thread."""
        with self._changed:
            if self._closed:
                job.deliver([(first_position, ModelNotReadyError("the server is shutting down"))])
            if self._closed or job.abandoned:
                return
            entries = [
                self._make_entry(job, position, reading, part, options)
                for position, reading in enumerate(readings, first_position)
                for part in range(len(reading.sequences))
            ]
            self._stamp(job, entries)
            for entry in entries:
                self._push(entry)
            self._update_gauges()
            self._changed.notify()

    def _make_entry(self, job: Job, position: int, reading: Reading, part: int, options: Options) -> Entry:
        cost = max(len(reading.sequences[part].input_ids), self._max_batch_tokens / _MAX_BATCH_TEXTS)
        return Entry(0.0, next(self._ages), job, position, reading, part, options, cost)

    def _stamp(self, job: Job, entries: Sequence[Entry]) -> None:
        """Give the job's next entries their places."""
        budget = self._max_batch_tokens
        cost = sum(entry.cost for entry in entries)
        is_little = job.texts <= _SMALL_REQUEST_TEXTS and job.queued_cost + cost <= budget * _SMALL_REQUEST_SHARE
        if is_little or (job.texts == 1 and len(entries) == 1):
            job.queued_cost += cost
            tag = self._entries.time + min(cost, budget)
            for entry in entries:
                entry.is_small, entry.tag, entry.cost = True, tag, min(entry.cost, budget)
            return
        for entry in entries:
            if job.queued_cost > budget:
                job.tag = max(job.tag, self._served)
            entry.tag = job.tag
            job.queued_cost += entry.cost
            job.tag += _LARGE_REQUEST_PENALTY * max(0, min(entry.cost, job.queued_cost - budget))

    def take(self, mode: BatchMode = BatchMode.PACKED) -> list[Entry]:
        """The next batch; waits for one, and `finish` must follow. Empty once the queue is closed.

        Args:
            mode: which texts may be in it: any, in order; those of like or equal length around the oldest one; or the
                oldest one alone.
        """
        with self._changed:
            while True:
                batch = self._take_batch(mode)
                if batch:
                    self._served += sum(entry.cost for entry in batch)
                    self._entries.charge(batch)
                    self._running_texts += len(batch)
                    self._update_gauges()
                    return batch
                if self._closed:
                    return []
                # What nobody waits for any more has left the queue.
                self._update_gauges()
                self._changed.wait()

    def finish(self, batch: Sequence[Entry]) -> None:
        """A batch that was taken runs no more, however it ended."""
        with self._changed:
            self._running_texts -= len(batch)
            # Also where entries are left: they may be of callers who have gone, and then there is no next batch.
            self._update_gauges()

    def record_throughput(self, tokens: int, seconds: float) -> None:
        """Learn how fast the model is, for the Retry-After of refused requests."""
        speed = tokens / max(seconds, 1e-6)
        self._tokens_a_second += 0.2 * (speed - self._tokens_a_second) if self._tokens_a_second else speed

    def close(self) -> None:
        """Fail what waits, and let `take` return."""
        with self._changed:
            self._closed = True
            for job, position in {entry.job: entry.position for entry in self._entries}.items():
                job.deliver([(position, ModelNotReadyError("the server is shutting down"))])
                job.waiting = job.waiting_tokens = 0
            self._entries.clear()
            self._waiting_tokens = 0
            self._waiting_texts = 0
            self._abandoned_texts = 0
            self._update_gauges()
            self._changed.notify_all()

    @property
    def _ahead(self) -> int:
        return _BATCHES_AHEAD * self._max_batch_tokens

    def _push(self, entry: Entry) -> None:
        self._entries.push(entry)
        self._waiting_tokens += entry.tokens
        self._waiting_texts += 1
        entry.job.waiting += 1
        entry.job.waiting_tokens += entry.tokens

    def _pop(self) -> Entry:
        entry = self._entries.pop()
        job = entry.job
        if not job.waiting:
            self._abandoned_texts -= 1
            return entry
        self._waiting_tokens -= entry.tokens
        self._waiting_texts -= 1
        job.waiting -= 1
        job.waiting_tokens -= entry.tokens
        if job.wants_room and job.waiting_tokens <= self._ahead:
            job.give_room()
        return entry

    def _sweep(self) -> None:
        """Drop what nobody waits for, once that is much: its place may come late."""
        if self._abandoned_texts > max(_MANY_ABANDONED, len(self._entries) // 2):
            self._entries.keep(lambda entry: entry.job.waiting > 0)
            self._abandoned_texts = 0

    def _update_gauges(self) -> None:
        self._metrics.waiting.set(self._waiting_texts)
        self._metrics.running.set(self._running_texts)

    def _next(self) -> Entry | None:
        """The oldest entry that somebody still waits for."""
        while (entry := self._entries.first()) is not None and entry.job.abandoned:
            self._pop()
        return entry

    def _take_batch(self, mode: BatchMode) -> list[Entry]:
        self._entries.start_batch()
        match mode:
            case BatchMode.PACKED:
                return self._take_oldest(_MAX_BATCH_TEXTS)
            case BatchMode.ONE_BY_ONE:
                return self._take_oldest(1)
            case BatchMode.PADDED | BatchMode.EQUAL_LENGTH:
                return self._take_by_length(mode)

    def _take_oldest(self, most: int) -> list[Entry]:
        batch: list[Entry] = []
        budget = self._max_batch_tokens
        while len(batch) < most and (entry := self._next()) is not None:
            if batch and entry.tokens > budget:
                break
            batch.append(self._pop())
            budget -= entry.tokens
        return batch

    def _take_by_length(self, mode: BatchMode) -> list[Entry]:
        candidates: list[Entry] = []
        while len(candidates) < _LENGTH_CANDIDATES and self._next() is not None:
            candidates.append(self._pop())
        if not candidates:
            return []
        oldest = candidates[0]
        # Of the same length in the order in which they came out of the queue.
        candidates.sort(key=lambda entry: abs(entry.tokens - oldest.tokens))
        longest, size = 0, 0
        for entry in candidates:
            longest = max(longest, entry.tokens)
            if mode is BatchMode.EQUAL_LENGTH and entry.tokens != oldest.tokens:
                break
            if size and (longest * (size + 1) > self._max_batch_tokens or size == _MAX_BATCH_TEXTS):
                break
            size += 1
        for entry in candidates[size:]:
            self._push(entry)
        return candidates[:size]

    def _drain_seconds(self) -> float:
        seconds = self._waiting_tokens / self._tokens_a_second if self._tokens_a_second else 1.0
        return min(_LONGEST_RETRY, max(1.0, seconds))
