"""The decode loop: one thread, one batch of running sequences, a token a row and step.

Between steps finished and cancelled rows leave, and waiting ones join: their prompts are computed together, in parts
where they are long, so that what runs does not wait long for a step.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from runners.errors import EngineDeadError, ModelNotReadyError, RunnerError
from runners.generator.choosing import Chooser, Step
from runners.generator.decoding import Batching, Decoder, Prefill, Rows
from runners.generator.request import Generation, Item
from runners.metrics import Load

logger = logging.getLogger(__name__)

MAX_ROWS = 64
# While sequences run, prompts get this part of a batch's tokens a step: it is how long the running ones wait.
_JOINING_PART = 8
# Most logits of prompts at once where a request asks for their log probabilities: 64 MiB in float32.
_MOST_LOGITS = 2**24


class Scheduler:
    """Runs generations; `run` is the model thread's, the rest is for any thread."""

    def __init__(self, decoder: Decoder, vocabulary: int, max_batch_tokens: int, load: Load) -> None:
        """
        Args:
            max_batch_tokens: most tokens of prompts that are computed at once; a longer prompt goes in parts, or alone
                where a model cannot stop in between.
            load: is told how many generations wait and run.
        """
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._max_batch_tokens = max_batch_tokens
        self._load = load
        self._waiting: deque[Generation] = deque()
        # Of these, those that are still waited for.
        self._waiting_count = 0
        self._changed = threading.Condition()
        self._closed = False
        self._dead = False
        # The model thread's own: what runs, and what is about to.
        self._running: list[Generation] = []
        self._rows: Rows | None = None
        self._chooser: Chooser | None = None
        self._tokens: list[int] = []
        self._joining: list[Generation] = []
        self._prefill: Prefill | None = None
        self._ready: Rows | None = None

    @property
    def failed(self) -> bool:
        return self._dead

    @property
    def count(self) -> int:
        """How many generations wait or run."""
        return self._waiting_count + len(self._joining) + len(self._running)

    @property
    def computes_in_parts(self) -> bool:
        """Whether prompts are computed some tokens at a time."""
        return self._decoder.batching is Batching.CONTINUOUS

    def submit(self, generation: Generation) -> None:
        """Queue a generation.

        Raises:
            EngineDeadError: the model thread has died.
            ModelNotReadyError: the scheduler is closed.
        """
        with self._changed:
            if self._dead or self._closed:
                raise self._end()
            self._enqueue(generation, self._waiting.append)
            self._changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Let a generation leave before the next step; nobody waits for it any more."""
        with self._changed:
            generation.cancelled = True
            self._leave_queue(generation)
            # They leave at the head of the queue, which may have to wait for room.
            if len(self._waiting) > 2 * self._waiting_count + MAX_ROWS:
                self._waiting = deque(each for each in self._waiting if not each.cancelled)

    def close(self) -> None:
        """Fail all, after the step that runs; does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @torch.inference_mode()
    def run(self) -> None:
        """Run until closed."""
        try:
            while self._wait():
                self._attempt(self._let_cancelled_leave, self._drop_running)
                self._admit()
                self._attempt(self._advance_prefill, self._drop_joining)
                self._attempt(self._step, self._drop_running)
        except BaseException:
            self._dead = True
            logger.exception("the model thread has died")
            raise
        finally:
            with self._changed:
                self._closed = True
                left = [*self._running, *self._joining, *self._waiting]
                self._waiting.clear()
                self._count_waiting(-self._waiting_count)
                self._load.running.set(0)
            _deliver([(generation, self._end()) for generation in left])

    def _end(self) -> RunnerError:
        if self._dead:
            return EngineDeadError("the engine has died: the server stops")
        return ModelNotReadyError("the server is shutting down")

    def _wait(self) -> bool:
        """Wait for something to do; False once closed."""
        with self._changed:
            self._load.running.set(len(self._joining) + len(self._running))
            while not (self._closed or self._waiting or self._joining or self._running):
                self._changed.wait()
            return not self._closed

    def _attempt(self, work: Callable[[], None], drop: Callable[[], list[Generation]]) -> None:
        """Do a part of a turn; where it fails, so does what it was for, and nothing else."""
        try:
            work()
        except torch.AcceleratorError:
            # A GPU that has faulted does nothing more for this process.
            raise
        except Exception as error:
            dropped = drop()
            if not isinstance(error, RunnerError):
                logger.exception("a batch of %d sequences has failed", len(dropped))
            _deliver([(generation, error) for generation in dropped])

    def _drop_running(self) -> list[Generation]:
        dropped, self._running, self._tokens = self._running, [], []
        self._rows = self._chooser = self._ready = None
        return dropped

    def _drop_joining(self) -> list[Generation]:
        dropped, self._joining, self._prefill = self._joining, [], None
        return dropped

    def _let_cancelled_leave(self) -> None:
        stay = [generation for generation in self._running if not generation.cancelled]
        if len(stay) == len(self._running):
            return
        rows = [row for row, generation in enumerate(self._owners()) if not generation.cancelled]
        self._go_on(stay, rows, [self._tokens[row] for row in rows])

    def _admit(self) -> None:
        """Start with waiting prompts where there is room."""
        if self._joining and all(generation.cancelled for generation in self._joining):
            self._drop_joining()
        if self._joining or (self._running and self._decoder.batching is not Batching.CONTINUOUS):
            return
        room = MAX_ROWS - sum(generation.most_rows for generation in self._running)
        longest = 0
        with self._changed:
            while self._waiting and not (self._joining and self._decoder.batching is Batching.ALONE):
                generation = self._waiting[0]
                if not generation.cancelled:
                    room -= generation.most_rows
                    if room < 0:
                        break
                    longest = max(longest, generation.length)
                    rows = sum(joining.rows for joining in self._joining) + generation.rows
                    if self._joining and (
                        # Those that ask for log probabilities of their prompts are slower: others do not join them.
                        generation.is_scored is not self._joining[0].is_scored
                        or longest * rows > self._budget(generation.is_scored)
                    ):
                        break
                    self._joining.append(generation)
                self._waiting.popleft()
                self._leave_queue(generation)
            self._load.running.set(len(self._joining) + len(self._running))

    def _enqueue(self, generation: Generation, append: Callable[[Generation], None]) -> None:
        append(generation)
        generation.waiting = True
        self._count_waiting(1)

    def _leave_queue(self, generation: Generation) -> None:
        if generation.waiting:
            generation.waiting = False
            self._count_waiting(-1)

    def _count_waiting(self, change: int) -> None:
        self._waiting_count += change
        self._load.waiting.set(self._waiting_count)

    def _budget(self, is_scored: bool) -> int:
        """Tokens of prompts that are computed at once."""
        tokens = self._max_batch_tokens // _JOINING_PART if self._running else self._max_batch_tokens
        return max(1, min(tokens, _MOST_LOGITS // self._vocabulary) if is_scored else tokens)

    def _advance_prefill(self) -> None:
        """Compute a part of the prompts; with the last part come the first tokens."""
        if not self._joining:
            return
        is_scored = self._joining[0].is_scored
        if self._prefill is None:
            sequences = [sequence for generation in self._joining for sequence in generation.sequences]
            self._prefill = self._decoder.start(sequences, keep_logits=is_scored)
        logits = self._decoder.advance(self._prefill, self._budget(is_scored))
        if is_scored:
            self._score_prompts(self._prefill)
        if logits is None:
            return
        rows = self._prefill.rows
        step = self._choose(self._new_chooser(self._joining), logits)
        if stay := [generation for generation in self._joining if not generation.finished]:
            if step.sources != list(range(len(rows))):
                rows.keep(step.sources)
            # From here on they are running: if they cannot join, what runs is not to be trusted either.
            self._running += stay
            self._tokens += step.tokens
            self._ready = rows
        self._drop_joining()

    def _score_prompts(self, prefill: Prefill) -> None:
        """Tell the log probabilities of the tokens after the columns that have just been computed."""
        assert prefill.logits is not None
        width = prefill.ids.shape[1]
        start = prefill.done - prefill.logits.shape[1]
        for row, generation in enumerate(self._joining):
            first = max(start, width - len(generation.request.prompt))
            last = min(prefill.done, width - 1)
            if first < last and generation.prompt_scores is not None:
                logits = prefill.logits[row, first - start : last - start]
                generation.prompt_scores.add(logits, prefill.ids[row, first + 1 : last + 1])
        prefill.logits = None

    def _step(self) -> None:
        """Let the rows join that are ready, and append a token to every row."""
        if self._ready is not None:
            if self._rows is None:
                self._rows = self._ready
            else:
                self._rows.join(self._ready)
            self._ready = None
            self._chooser = self._new_chooser(self._running)
        self._restart()
        if self._rows is None or self._chooser is None:
            return
        step = self._choose(self._chooser, self._decoder.step(self._rows, self._tokens))
        stay = [generation for generation in self._running if not generation.finished]
        self._go_on(stay, step.sources, step.tokens)

    def _choose(self, chooser: Chooser, logits: Tensor) -> Step:
        """Choose the next tokens and send what they add."""
        step = chooser.choose(logits)
        _deliver(step.items)
        return step

    def _restart(self) -> None:
        """Rows that the model is to compute anew leave, and wait before all others."""
        limit = self._decoder.restarts_above
        if limit is None or self._rows is None:
            return
        lengths = self._rows.lengths
        owners = self._owners()
        again = dict.fromkeys(owner for owner, length in zip(owners, lengths, strict=True) if length == limit)
        if not again:
            return
        with self._changed:
            for generation in reversed(again):
                self._enqueue(generation, self._waiting.appendleft)
        rows = [row for row, length in enumerate(lengths) if length != limit]
        stay = [generation for generation in self._running if not generation.waiting]
        self._go_on(stay, rows, [self._tokens[row] for row in rows])

    def _owners(self) -> list[Generation]:
        """The generation of each running row."""
        return [generation for generation in self._running for _ in range(generation.rows)]

    def _go_on(self, generations: list[Generation], sources: list[int], tokens: list[int]) -> None:
        """Let only these of what runs go on; rows as in `Step`."""
        all_stay = len(generations) == len(self._running)
        self._running, self._tokens = generations, tokens
        if self._rows is None or not generations:
            self._rows = self._chooser = None
        elif all_stay:
            self._rows.follow(sources)
        else:
            self._rows.keep(sources)
            self._chooser = self._new_chooser(generations)

    def _new_chooser(self, generations: Sequence[Generation]) -> Chooser:
        return Chooser(generations, self._vocabulary, self._decoder.model.device)


def _deliver(items: Sequence[tuple[Generation, Item]]) -> None:
    """Hand out what a step has made, with one call an event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Generation, Item]]] = {}
    for generation, item in items:
        by_loop.setdefault(generation.loop, []).append((generation, item))
    for loop, own in by_loop.items():
        try:
            loop.call_soon_threadsafe(_put, own)
        except RuntimeError:
            # The callers' event loop is closed, and nobody waits.
            for generation, _ in own:
                generation.cancelled = True


def _put(items: Sequence[tuple[Generation, Item]]) -> None:
    for generation, item in items:
        generation.queue.put_nowait(item)
