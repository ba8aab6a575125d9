"""The decode loop: turns of a device thread run one batch of sequences; each step appends a token to every row.

Between steps, finished and cancelled rows leave and waiting sequences join. Prompts are computed in groups; long
prompts are computed in parts, so that running sequences do not wait long for their next step, and groups take turns.
If a forward pass fails, each of its sequences is computed alone, and only those that fail again end.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from time import perf_counter

import torch

from runners.core.errors import EngineDeadError, ModelNotReadyError, RunnerError
from runners.core.metrics import BatchMetrics, QueueMetrics
from runners.core.token_budget import TokenBudget
from runners.generator.decoder import Batching, Decoder
from runners.generator.fair_queue import FairQueue, Verdict
from runners.generator.row_allocation import FreeRows, Reservation
from runners.generator.running_batch import Batch, PromptGroup, compute, score_prompts
from runners.generator.sequence_errors import as_runner_error
from runners.generator.sequence_state import Generation, deliver
from runners.modeling.device_failures import examine_failure, is_out_of_memory

logger = logging.getLogger(__name__)

# While sequences run, prompts get this part of a batch's tokens in each step: the running sequences wait that long.
_PREFILL_PART = 8
# Most logits of prompts whose log probabilities are computed at once: 64 MiB in float32.
_MOST_LOGITS = 2**24


class Scheduler:
    """Runs sequences in the turns of a device thread; `submit`, `cancel` and `close` are called by any thread."""

    def __init__(
        self,
        decoder: Decoder,
        vocabulary: int,
        max_batch_tokens: int,
        metrics: QueueMetrics,
        changed: threading.Condition,
    ) -> None:
        """
        Args:
            vocabulary: number of logits of a row.
            max_batch_tokens: most tokens of prompts that are computed at once; a longer prompt is computed in parts,
                or alone where the model cannot do that.
            metrics: the gauges of sequences that wait and run.
            changed: of the device thread.
        """
        self._decoder = decoder
        self._vocabulary = vocabulary
        self._token_budget = TokenBudget(max_batch_tokens)
        self._metrics = metrics
        self._batches = BatchMetrics(metrics.model_name)
        self._waiting = FairQueue()
        self._changed = changed
        self._closed = False
        self._dead = False
        # The rest is used in turns only. The first group of prompts is computed next.
        self._running = Batch(decoder, vocabulary)
        self._joining: deque[PromptGroup] = deque()
        # Sequences of a request that held more than its share of the rows when other requests came.
        self._paused = Batch(decoder, vocabulary)
        self._reservation = Reservation()
        # Sequences whose batch has failed, until they are computed again.
        self._failed: list[Generation] = []

    @property
    def failed(self) -> bool:
        return self._dead

    @property
    def count(self) -> int:
        """Number of sequences that wait or run."""
        return len(self._waiting) + self._count_busy()

    @property
    def computes_in_parts(self) -> bool:
        """Whether long prompts are computed in parts."""
        return self._decoder.batching is Batching.CONTINUOUS

    def submit(self, generation: Generation) -> None:
        """Queue a sequence.

        Raises:
            EngineDeadError: the engine has died.
            ModelNotReadyError: the scheduler is closed.
        """
        with self._changed:
            if self._dead or self._closed:
                raise self._closed_error()
            self._waiting.push(generation)
            self._metrics.waiting.set(len(self._waiting))
            self._changed.notify()

    def cancel(self, generation: Generation) -> None:
        """Remove a sequence before the next step; its caller does not wait for it any more."""
        with self._changed:
            generation.cancelled = True
            self._waiting.discard(generation)
            self._metrics.waiting.set(len(self._waiting))

    def close(self) -> None:
        """Refuse new sequences and run no further step; `end` fails those that wait or run."""
        with self._changed:
            self._closed = True

    def take(self) -> Callable[[], None] | None:
        """See `WorkSource.take`: a step."""
        self._metrics.running.set(self._count_busy())
        if self._closed or not (len(self._waiting) or self._count_busy()):
            return None
        return self._run

    @torch.inference_mode()
    def _run(self) -> None:
        self._remove_cancelled()
        self._admit()
        self._advance_prefill()
        self._step()

    def end(self, error: BaseException | None) -> None:
        """See `WorkSource.end`."""
        with self._changed:
            self._closed = True
            self._dead = error is not None
            unfinished = [*self._busy(), *self._failed, *self._paused.generations, *self._waiting.drain()]
            self._metrics.waiting.set(0)
            self._metrics.running.set(0)
        deliver([(generation, self._closed_error()) for generation in unfinished])

    def _closed_error(self) -> RunnerError:
        if self._dead:
            return EngineDeadError.of_server()
        return ModelNotReadyError.of_shutdown()

    def _busy(self) -> list[Generation]:
        """The sequences that run, or whose prompts are computed."""
        joining = [generation for group in self._joining for generation in group.generations]
        return [*self._running.generations, *joining]

    def _count_busy(self) -> int:
        joining = sum(len(group.generations) for group in self._joining.copy())
        return len(self._running) + len(self._paused) + joining

    def _remove_cancelled(self) -> None:
        for group in list(self._joining):
            if all(generation.cancelled for generation in group.generations):
                self._joining.remove(group)
        for batch in (self._running, self._paused):
            if any(generation.cancelled for generation in batch.generations):
                try:
                    batch.keep(lambda generation: not generation.cancelled)
                except Exception as error:
                    self._fail(batch.clear(), error)
                self._recover()

    def _admit(self) -> None:
        """Make a group of waiting sequences, if there are free rows."""
        is_continuous = self._decoder.batching is Batching.CONTINUOUS
        # A group that has not begun is computed first.
        if not (len(self._waiting) or len(self._paused)) or any(group.prefill is None for group in self._joining):
            return
        busy = self._busy()
        if busy and not is_continuous:
            return
        if len(self._paused):
            self._resume(FreeRows(busy))
            busy = self._busy()
        free = FreeRows(busy)
        if excess := free.find_excess():
            self._pause(*excess)
            busy = self._busy()
            free = FreeRows(busy)
        if not free.count:
            return
        with self._changed:
            group = self._take_group(free)
            self._metrics.waiting.set(len(self._waiting))
            self._metrics.running.set(len(busy) + len(group))
        for generation in group:
            if (record := generation.record) is not None and not record.computing:
                record.computing = perf_counter()
        if group:
            # After the group that is computed next, so that neither long prompts nor later ones wait long.
            self._joining.insert(1, PromptGroup(group))

    def _others(self, owner: Hashable) -> bool:
        """Whether sequences of other requests wait or are paused."""
        paused = any(generation.owner != owner for generation in self._paused.generations)
        return paused or self._waiting.has_others(owner)

    def _pause(self, owner: Hashable, excess: int) -> None:
        """Pause the newest sequences of a request while other requests need their rows; their state is kept.

        Args:
            excess: number of rows to free.
        """
        if self._decoder.batching is not Batching.CONTINUOUS or not self._others(owner):
            return
        leaving: set[Generation] = set()
        for generation in reversed(self._running.generations):
            if generation.owner == owner and excess > 0:
                leaving.add(generation)
                excess -= generation.most_rows
        self._move(self._running, self._paused, leaving)

    def _resume(self, free: FreeRows) -> None:
        """Continue paused sequences whose requests may hold their rows again."""
        resumed: set[Generation] = set()
        for generation in self._paused.generations:
            others = self._others(generation.owner)
            if generation.most_rows <= free.count and free.may_hold(generation, others):
                resumed.add(generation)
                free.take(generation)
        self._move(self._paused, self._running, resumed)

    def _move(self, source: Batch, target: Batch, generations: set[Generation]) -> None:
        if not generations:
            return
        try:
            target.join(source.split(generations))
        except Exception as error:
            self._fail(dict.fromkeys([*source.clear(), *target.clear(), *generations]), error)
        self._recover()

    def _take_group(self, free: FreeRows) -> list[Generation]:
        """Take the waiting sequences whose prompts are computed together next."""
        group: list[Generation] = []
        longest = rows = 0
        # A request's paused sequences run before those that wait.
        paused = {generation.owner for generation in self._paused.generations}
        self._reservation.update(self._busy())

        def judge(generation: Generation) -> Verdict:
            if group and (
                self._decoder.batching is Batching.ALONE
                # Prompts with log probabilities are slower, so that others do not join them.
                or generation.needs_prompt_scores is not group[0].needs_prompt_scores
                or max(longest, generation.length) * (rows + generation.rows)
                > self._budget(generation.needs_prompt_scores)
            ):
                return Verdict.STOP
            if not free.count:
                return Verdict.STOP
            may_hold = generation.owner not in paused and free.may_hold(generation, self._others(generation.owner))
            return Verdict.TAKE if may_hold and self._reservation.allows(generation, free) else Verdict.PASS

        while (generation := self._waiting.take(judge)) is not None:
            group.append(generation)
            free.take(generation)
            longest, rows = max(longest, generation.length), rows + generation.rows
            self._reservation.add_overtaking(generation)
        return group

    def _budget(self, needs_prompt_scores: bool) -> int:
        """Number of tokens of prompts that are computed at once."""
        tokens = self._token_budget.tokens // _PREFILL_PART if len(self._running) else self._token_budget.tokens
        return max(1, min(tokens, _MOST_LOGITS // self._vocabulary) if needs_prompt_scores else tokens)

    def _advance_prefill(self) -> None:
        """Compute a part of the first group's prompts; its sequences run after the last part."""
        if not self._joining:
            return
        group, batch = self._joining[0], None
        try:
            batch = self._advance(group)
        except Exception as error:
            self._joining.popleft()
            group.prefill = None
            self._fail(group.generations, error)
            if is_out_of_memory(error) and (len(group.generations) > 1 or self.computes_in_parts):
                tokens = self._budget(group.needs_prompt_scores)
                self._token_budget.record_out_of_memory(tokens, str(self._decoder.model.device))
        else:
            if batch is None:
                self._joining.rotate(-1)
            else:
                self._joining.popleft()
                self._join(batch)
        self._recover()

    def _advance(self, group: PromptGroup) -> Batch | None:
        """Compute a part of the prompts; the sequences that run now, if the prompts are complete."""
        if group.prefill is None:
            sequences = [sequence for generation in group.generations for sequence in generation.sequences]
            group.prefill = self._decoder.start(sequences, keep_logits=group.needs_prompt_scores)
        prefill, start = group.prefill, group.prefill.done
        logits = self._decoder.advance(prefill, self._budget(group.needs_prompt_scores))
        rows, tokens = len(prefill.ids), prefill.count_tokens(start)
        self._batches.count(rows, tokens, rows * (prefill.done - start) - tokens)
        if group.needs_prompt_scores:
            score_prompts(group.generations, prefill)
        if logits is None:
            return None
        batch = Batch(self._decoder, self._vocabulary)
        deliver(batch.begin(group.generations, prefill.rows, logits))
        return batch

    def _join(self, batch: Batch) -> None:
        try:
            self._running.join(batch)
        except Exception as error:
            # The state of the running rows may be damaged too.
            self._fail([*self._running.clear(), *batch.clear()], error)

    def _step(self) -> None:
        """Append a token to every row."""
        try:
            self._restart()
            rows = self._running.rows
            items = self._running.step()
            if rows:
                self._batches.count(rows, rows, 0)
            deliver(items)
        except Exception as error:
            self._fail(self._running.clear(), error)
        self._recover()

    def _fail(self, generations: Iterable[Generation], error: Exception) -> None:
        """Note that sequences have failed, and free what the error holds of them; `_recover` must follow.

        Raises:
            DeviceFailedError: the GPU has failed.
        """
        failed = [each for each in generations if not (each.finished or each.cancelled or each.waiting)]
        self._failed += failed
        examine_failure(error, self._decoder.model.device)
        logger.warning("a batch of %d sequences has failed (%s): each runs alone", len(failed), type(error).__name__)

    def _recover(self) -> None:
        """Compute each sequence that has failed again, alone, up to its last token; those that fail again end.

        Call it when the error is gone: it may hold memory that they need.
        """
        while self._failed:
            generation = self._failed[0]
            try:
                self._compute_alone(generation)
            except Exception as error:
                examine_failure(error, self._decoder.model.device)
                generation.finished = True
                deliver([(generation, as_runner_error(error))])
            self._failed.pop(0)

    def _compute_alone(self, generation: Generation) -> None:
        batch = Batch(self._decoder, self._vocabulary)
        rows, logits = compute(self._decoder, generation, self._budget(generation.needs_prompt_scores))
        deliver(batch.begin([generation], rows, logits))
        deliver(batch.step())
        while self._decoder.batching is not Batching.CONTINUOUS and len(batch) and not generation.cancelled:
            deliver(batch.step())
        self._running.join(batch)

    def _restart(self) -> None:
        """Move sequences that the model must compute anew to the front of the queue."""
        limit = self._decoder.restarts_above
        if limit is None or not (restarting := self._running.find_at(limit)):
            return
        with self._changed:
            self._waiting.push_first(restarting)
        self._running.keep(lambda generation: not generation.waiting)
