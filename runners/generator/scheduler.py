"""The decode loop: one thread, one batch of running sequences, a token a row and step.

Between steps finished and cancelled rows leave, and waiting ones join: their prompts are computed together, in parts
where they are long, so that what runs does not wait long for a step; and long ones take turns with those that come
after them. Where a forward pass fails, each of its sequences is computed alone, and only what fails again ends.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from runners.core.errors import EngineDeadError, ModelNotReadyError, RunnerError
from runners.core.metrics import QueueMetrics
from runners.generator.decoder import Batching, Decoder, Prefill
from runners.generator.failures import as_failure
from runners.generator.fair_queue import FairQueue, Verdict
from runners.generator.generation_request import Generation, Item
from runners.generator.row_budget import MAX_ROWS, Room
from runners.generator.running_batch import Batch, compute, score_prompts

logger = logging.getLogger(__name__)

# While sequences run, prompts get this part of a batch's tokens a step: it is how long the running ones wait.
_JOINING_PART = 8
# Most logits of prompts at once where a request asks for their log probabilities: 64 MiB in float32.
_MOST_LOGITS = 2**24


@dataclass(slots=True)
class _Joining:
    """Sequences whose prompts are computed together, and how far that is."""

    generations: list[Generation]
    prefill: Prefill | None = None

    @property
    def is_scored(self) -> bool:
        return self.generations[0].is_scored


class Scheduler:
    """Runs generations; `run` is the model thread's, the rest is for any thread."""

    def __init__(self, decoder: Decoder, vocabulary: int, max_batch_tokens: int, load: QueueMetrics) -> None:
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
        self._waiting = FairQueue()
        self._changed = threading.Condition()
        self._closed = False
        self._dead = False
        # The model thread's own: what runs, and what is about to, the group whose turn is next first.
        self._running = Batch(decoder, vocabulary)
        self._joining: deque[_Joining] = deque()
        # Rows of a request that had more than its share when others came.
        self._paused = Batch(decoder, vocabulary)
        # A sequence of several rows that waits for them, and those that have gone before it meanwhile.
        self._wide: Generation | None = None
        self._bypassing: set[Generation] = set()

    @property
    def failed(self) -> bool:
        return self._dead

    @property
    def count(self) -> int:
        """How many generations wait or run."""
        return len(self._waiting) + self._count_busy()

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
            self._waiting.push(generation)
            self._load.waiting.set(len(self._waiting))
            self._changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Let a generation leave before the next step; nobody waits for it any more."""
        with self._changed:
            generation.cancelled = True
            self._waiting.discard(generation)
            self._load.waiting.set(len(self._waiting))

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
                self._let_cancelled_leave()
                self._admit()
                self._advance_prefill()
                self._step()
        except BaseException:
            self._dead = True
            logger.exception("the model thread has died")
            raise
        finally:
            with self._changed:
                self._closed = True
                left = [*self._busy(), *self._paused.generations, *self._waiting.drain()]
                self._load.waiting.set(0)
                self._load.running.set(0)
            _deliver([(generation, self._end()) for generation in left])

    def _end(self) -> RunnerError:
        if self._dead:
            return EngineDeadError("the engine has died: the server stops")
        return ModelNotReadyError("the server is shutting down")

    def _busy(self) -> list[Generation]:
        """What runs or joins."""
        return [*self._running.generations, *(each for group in self._joining for each in group.generations)]

    def _count_busy(self) -> int:
        joining = sum(len(group.generations) for group in self._joining.copy())
        return len(self._running) + len(self._paused) + joining

    def _wait(self) -> bool:
        """Wait for something to do; False once closed."""
        with self._changed:
            self._load.running.set(self._count_busy())
            while not (self._closed or len(self._waiting) or self._count_busy()):
                self._changed.wait()
            return not self._closed

    def _let_cancelled_leave(self) -> None:
        for group in [each for each in self._joining if all(one.cancelled for one in each.generations)]:
            self._joining.remove(group)
        for batch in (self._running, self._paused):
            if any(generation.cancelled for generation in batch.generations):
                try:
                    batch.keep(lambda generation: not generation.cancelled)
                except torch.AcceleratorError:
                    # A GPU that has faulted does nothing more for this process.
                    raise
                except Exception as error:
                    self._recover(batch.clear(), error)

    def _admit(self) -> None:
        """Start with waiting prompts where there is room."""
        continuous = self._decoder.batching is Batching.CONTINUOUS
        # A group that has not begun will have its turn first.
        if not (len(self._waiting) or len(self._paused)) or any(group.prefill is None for group in self._joining):
            return
        busy = self._busy()
        if busy and not continuous:
            return
        if len(self._paused):
            self._resume(Room(busy))
            busy = self._busy()
        room = Room(busy)
        if excess := room.find_excess():
            self._pause(*excess)
            busy = self._busy()
            room = Room(busy)
        if not room.free:
            return
        with self._changed:
            group = self._find_group(room)
            self._load.waiting.set(len(self._waiting))
            self._load.running.set(len(busy) + len(group))
        if group:
            # Behind the group whose turn is next, so that neither long prompts nor those that come later wait long.
            self._joining.insert(1, _Joining(group))

    def _others(self, owner: Hashable) -> bool:
        """Whether sequences of other requests wait, or are paused."""
        return self._waiting.has_others(owner) or any(each.owner != owner for each in self._paused.generations)

    def _pause(self, owner: Hashable, excess: int) -> None:
        """Let the youngest rows of a request leave for as long as others need them; nothing of them is lost."""
        if self._decoder.batching is not Batching.CONTINUOUS or not self._others(owner):
            return
        leaving: set[Generation] = set()
        for generation in reversed(self._running.generations):
            if generation.owner == owner and excess > 0:
                leaving.add(generation)
                excess -= generation.most_rows
        self._move(self._running, self._paused, leaving)

    def _resume(self, room: Room) -> None:
        """Let what is paused go on where its request may hold rows again."""
        going: set[Generation] = set()
        for generation in self._paused.generations:
            others = self._others(generation.owner)
            if generation.most_rows <= room.free and room.may_hold(generation, others):
                going.add(generation)
                room.add(generation)
        self._move(self._paused, self._running, going)

    def _move(self, source: Batch, target: Batch, generations: set[Generation]) -> None:
        if not generations:
            return
        try:
            target.join(source.split(generations))
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._recover(list(dict.fromkeys([*source.clear(), *target.clear(), *generations])), error)

    def _find_group(self, room: Room) -> list[Generation]:
        """The waiting sequences whose prompts are computed together next."""
        group: list[Generation] = []
        longest = rows = 0
        # They go before those of their requests that wait.
        paused = {generation.owner for generation in self._paused.generations}
        self._forget_wide()

        def judge(generation: Generation) -> Verdict:
            if group and (
                self._decoder.batching is Batching.ALONE
                # Those that ask for log probabilities of their prompts are slower: others do not join them.
                or generation.is_scored is not group[0].is_scored
                or max(longest, generation.length) * (rows + generation.rows) > self._budget(generation.is_scored)
            ):
                return Verdict.STOP
            if not room.free:
                return Verdict.STOP
            may_hold = generation.owner not in paused and room.may_hold(generation, self._others(generation.owner))
            return Verdict.TAKE if may_hold and self._fits(generation, room) else Verdict.PASS

        while (generation := self._waiting.take(judge)) is not None:
            group.append(generation)
            room.add(generation)
            longest, rows = max(longest, generation.length), rows + generation.rows
            if self._wide is not None:
                self._bypassing.add(generation)
        return group

    def _fits(self, generation: Generation, room: Room) -> bool:
        """Whether there are rows for it; those that go before one that waits for several leave it so many."""
        if self._wide is None and generation.most_rows > room.free:
            self._wide = generation
        if self._wide is None or generation is self._wide:
            return generation.most_rows <= room.free
        bypassing = sum(each.most_rows for each in self._bypassing)
        return generation.most_rows <= min(room.free, MAX_ROWS - self._wide.most_rows - bypassing)

    def _forget_wide(self) -> None:
        if self._wide is not None and not self._wide.waiting:
            self._wide = None
            self._bypassing.clear()
        self._bypassing.intersection_update(self._busy())

    def _budget(self, is_scored: bool) -> int:
        """Tokens of prompts that are computed at once."""
        tokens = self._max_batch_tokens // _JOINING_PART if len(self._running) else self._max_batch_tokens
        return max(1, min(tokens, _MOST_LOGITS // self._vocabulary) if is_scored else tokens)

    def _advance_prefill(self) -> None:
        """Compute a part of the prompts whose turn it is; with the last part come the first tokens."""
        if not self._joining:
            return
        group = self._joining[0]
        try:
            is_complete = self._advance(group)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._joining.popleft()
            self._recover(group.generations, error)
            return
        if is_complete:
            self._joining.popleft()
        else:
            self._joining.rotate(-1)

    def _advance(self, group: _Joining) -> bool:
        """Compute a part of the prompts; whether they are complete, and run."""
        if group.prefill is None:
            sequences = [sequence for generation in group.generations for sequence in generation.sequences]
            group.prefill = self._decoder.start(sequences, keep_logits=group.is_scored)
        logits = self._decoder.advance(group.prefill, self._budget(group.is_scored))
        if group.is_scored:
            score_prompts(group.generations, group.prefill)
        if logits is None:
            return False
        batch = Batch(self._decoder, self._vocabulary)
        _deliver(batch.begin(group.generations, group.prefill.rows, logits))
        try:
            self._running.join(batch)
        except torch.AcceleratorError:
            raise
        except Exception as error:
            # What runs is not to be trusted either.
            self._recover([*self._running.clear(), *batch.generations], error)
        return True

    def _step(self) -> None:
        """Append a token to every row."""
        try:
            self._restart()
            _deliver(self._running.step())
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._recover(self._running.clear(), error)

    def _recover(self, generations: Sequence[Generation], error: Exception) -> None:
        """Compute each of these sequences alone once more, as far as it has come; what fails again ends."""
        left = [each for each in generations if not (each.finished or each.cancelled or each.waiting)]
        logger.warning("a batch of %d sequences has failed (%s): each runs alone", len(left), type(error).__name__)
        for generation in left:
            batch = Batch(self._decoder, self._vocabulary)
            try:
                rows, logits = compute(self._decoder, generation, self._budget(generation.is_scored))
                _deliver(batch.begin([generation], rows, logits))
                _deliver(batch.step())
                while self._decoder.batching is not Batching.CONTINUOUS and len(batch) and not generation.cancelled:
                    _deliver(batch.step())
                self._running.join(batch)
            except torch.AcceleratorError:
                raise
            except Exception as own:
                generation.finished = True
                _deliver([(generation, as_failure(own))])

    def _restart(self) -> None:
        """Rows that the model is to compute anew leave, and wait before all others."""
        limit = self._decoder.restarts_above
        if limit is None or not (again := self._running.find_at(limit)):
            return
        with self._changed:
            self._waiting.push_first(again)
        self._running.keep(lambda generation: not generation.waiting)


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
