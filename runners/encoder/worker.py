"""Runs batches, in the device thread: forward pass, scores, predictions, and the answers to requests.

On a GPU the next batch is launched before the results of the last one are read, so that the GPU does not wait for
predictions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from runners.core.errors import (
    EngineDeadError,
    InputError,
    NonFiniteScoresError,
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    brief,
    describe_text_error,
)
from runners.core.tracing import Batch, trace_batch
from runners.encoder.queue_entries import Entry, PendingRequest, deliver, refuse
from runners.modeling.dtypes import name_dtype

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runners.core.predictions import Prediction
    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.transfers import PendingArray

logger = logging.getLogger(__name__)


class ModelWorker:
    """The batches of one model, as the turns of a device thread."""

    def __init__(self, loaded: LoadedModel, on_end: Callable[[LoadedModel], None]) -> None:
        """
        Args:
            on_end: called after the model's queue is closed, when no batch will run any more.
        """
        self._loaded = loaded
        self._on_end = on_end
        # The batch that the device computes while the next one is launched.
        self._launched: _PausableBatch | None = None
        self._last_end = 0.0

    def take(self) -> Callable[[], None] | None:
        """See `WorkSource.take`."""
        batch = self._loaded.queue.take(self._loaded.forward.mode)
        if batch:
            return partial(self._launch, batch)
        return self._collect if self._launched is not None else None

    def end(self, error: BaseException | None) -> None:
        """See `WorkSource.end`."""
        # Whatever ends the model, no request may wait for it.
        self._loaded.close()
        if self._launched is not None:
            if error is None:
                self._collect()
            else:
                self._launched.abort(error)
        self._on_end(self._loaded)

    def _launch(self, batch: Sequence[Entry]) -> None:
        """Launch a batch, and then deliver the results of the one that was launched before it."""
        launched = _PausableBatch(self._run(batch))
        has_paused = launched.resume()
        previous, self._launched = self._launched, launched if has_paused else None
        if previous is not None:
            previous.finish()
        if not self._loaded.queue.has_waiting:
            # Nothing can be launched beside it.
            self._collect()

    def _collect(self) -> None:
        """Deliver the results of the batch that is launched."""
        launched, self._launched = self._launched, None
        if launched is not None:
            launched.finish()

    def _run(self, batch: Sequence[Entry]) -> Generator[None]:
        """Run a batch, deliver its answers, and measure it; it yields while the device computes."""
        queue = self._loaded.queue
        start = time.perf_counter()
        try:
            tokens = sum(entry.tokens for entry in batch)
            padding = self._loaded.forward.count_padding([entry.text for entry in batch])
            self._loaded.metrics.count(len(batch), tokens, padding)
            records = [record for entry in batch if (record := entry.request.record) is not None]
            for record in records:
                record.computing = record.computing or start
            with trace_batch(Batch(self._loaded.encoder_task.arguments.model_name, records, len(batch), tokens)):
                yield from run_batch(self._loaded, batch)
        except (Exception, GeneratorExit):
            # The device thread ends this model.
            refuse(batch)
            raise
        except BaseException:
            # It ends all models.
            refuse(batch, EngineDeadError.of_server())
            raise
        finally:
            queue.finish(batch)
        end = time.perf_counter()
        # A device computes one batch after another, a predictor several at once.
        begin = start if self._loaded.predictor is not None else max(start, self._last_end)
        queue.record_throughput(tokens, end - begin)
        self._last_end = end


class _PausableBatch:
    """A batch that pauses while the device computes it."""

    def __init__(self, steps: Generator[None]) -> None:
        # What the batch sets for its calls holds until it ends, in whichever turn that is.
        self._context = copy_context()
        self._steps = steps

    def resume(self) -> bool:
        """Run it until it pauses or ends; returns whether it has paused."""
        try:
            self._context.run(next, self._steps)
        except StopIteration:
            return False
        return True

    def finish(self) -> None:
        """Run it until it ends."""
        while self.resume():
            pass

    def abort(self, error: BaseException) -> None:
        """End it without results: its requests fail.

        Args:
            error: what has ended the model.
        """
        with suppress(BaseException):
            self._context.run(self._steps.throw, GeneratorExit() if isinstance(error, Exception) else error)


def run_batch(loaded: LoadedModel, batch: Sequence[Entry]) -> Generator[None]:
    """Run a batch and deliver its answers; it yields while the device computes.

    If a batch fails, its halves run again, and so on, so that only the texts that cause the failure fail. A predictor
    that is not available would fail every half, so its batches do not run again.

    Raises:
        DeviceFailedError: the GPU has failed.
    """
    predictions: Sequence[Prediction | Exception | None]
    try:
        scores = _compute_scores(loaded, batch)
        if scores.array.is_pending:
            yield
        predictions = _predict(loaded, batch, scores)
        _count_failed(loaded, batch, predictions)
    except Exception as error:
        _examine(loaded, batch, error)
        is_unavailable = isinstance(error, PredictorError) and not isinstance(error, PredictorRefusalError)
        runs_again = len(batch) > 1 and not is_unavailable
        predictions = [] if runs_again else [describe_text_error(entry.position, error) for entry in batch]
    # The halves run when the error is gone: it may hold memory that they need.
    if not predictions:
        middle = len(batch) // 2
        yield from run_batch(loaded, batch[:middle])
        yield from run_batch(loaded, batch[middle:])
        return
    answers: dict[PendingRequest, list[tuple[int, Prediction | Exception]]] = {}
    for entry, prediction in zip(batch, predictions, strict=True):
        if prediction is not None:
            answers.setdefault(entry.request, []).append((entry.position, prediction))
    # Before the event loop may answer them.
    computed = time.perf_counter()
    for request in answers:
        if request.record is not None:
            request.record.computed = computed
    deliver(answers)


def _examine(loaded: LoadedModel, batch: Sequence[Entry], error: Exception) -> None:
    """Free what the error of a batch holds; if memory has run out, record that.

    Raises:
        DeviceFailedError: the GPU has failed.
    """
    from runners.modeling.device_failures import examine_failure, is_out_of_memory

    examine_failure(error, loaded.model.device)
    if len(batch) > 1 and is_out_of_memory(error):
        loaded.queue.budget.record_out_of_memory(sum(entry.tokens for entry in batch), loaded.details.device)


@dataclass(frozen=True, slots=True)
class _Scores:
    """What `reduce_rows` makes of a batch, on its way to the CPU, and how many rows of scores each text has."""

    array: PendingArray
    counts: list[int]


def _predict(loaded: LoadedModel, batch: Sequence[Entry], computed: _Scores) -> list[Prediction | Exception | None]:
    """The answer to the text of each entry: None while other sequences of the text are missing, else a prediction.

    If the scores of a sequence are not finite, the answer is an error.
    """
    options = [entry.options for entry in batch]
    scores = loaded.encoder_task.split_scores(computed.array.wait(), computed.counts, options)
    predictions: list[Prediction | Exception | None] = []
    for entry, rows in zip(batch, scores, strict=True):
        if not np.isfinite(rows).all():
            predictions.append(_non_finite_error(loaded, entry.position))
            continue
        predictions.append(_answer(loaded, entry, rows))
    return predictions


def _answer(loaded: LoadedModel, entry: Entry, rows: NDArray[np.float32]) -> Prediction | Exception | None:
    """The answer to the text of an entry, once the scores of all its sequences are there.

    An error here concerns this text alone, so it does not fail the batch.
    """
    try:
        condensed = loaded.encoder_task.condense(rows, entry.text, entry.options)
        parts = entry.encoded.add_scores(entry.part, condensed)
        if parts is None:
            return None
        prediction = loaded.encoder_task.predict(parts, entry.encoded, entry.options)
        if numbers := loaded.encoder_task.count_numbers(prediction):
            loaded.queue.reserve_found(entry.request, numbers)
        return prediction
    except Exception as error:
        # The protocol that answers the request logs it.
        return describe_text_error(entry.position, error)


def _non_finite_error(loaded: LoadedModel, position: int) -> Exception:
    if loaded.predictor is not None:
        return PredictorAnswerError(f"the predictor's scores of text {position} are not finite (NaN or infinity)")
    name = loaded.encoder_task.arguments.model_name
    dtype = name_dtype(loaded.model.dtype)
    return NonFiniteScoresError(
        f"the scores of model {name} for text {position} are not finite (NaN or infinity) "
        f"and mean nothing: its weights are damaged, or overflow in {dtype}"
    )


def _count_failed(
    loaded: LoadedModel, batch: Sequence[Entry], predictions: Sequence[Prediction | Exception | None]
) -> None:
    """Count the texts whose scores are not finite, and log one of them."""
    pairs = zip(batch, predictions, strict=True)
    failed = {
        (id(entry.request), entry.position): prediction
        for entry, prediction in pairs if isinstance(prediction, NonFiniteScoresError | PredictorAnswerError)
    }  # fmt: skip
    if failed:
        loaded.metrics.count_non_finite(len(failed))
        logger.error("%d of %d texts failed: %s", len(failed), len(batch), next(iter(failed.values())))


def _compute_scores(loaded: LoadedModel, batch: Sequence[Entry]) -> _Scores:
    """Run the model on a batch, and start the copy of its scores to the CPU.

    Raises:
        InputError: the model refuses a text. Some classifiers need an end-of-text token, for example.
    """
    import torch

    from runners.encoder.transfers import PendingArray

    with torch.inference_mode():
        try:
            rows, counts = loaded.forward.run([entry.text for entry in batch])
        except (AssertionError, ValueError) as error:
            raise InputError(f"the model does not run on it: {brief(error)}") from error
        reduced = loaded.encoder_task.reduce_rows(rows, counts, [entry.options for entry in batch])
        return _Scores(PendingArray(reduced), counts)
