"""The model thread: loads the model, then runs batches (forward pass, scores, predictions) and answers requests."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

import numpy as np

from runners.core.errors import (
    InputError,
    NonFiniteScoresError,
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    brief,
    describe_text_error,
)
from runners.core.metrics import NON_FINITE_TEXTS
from runners.core.predictions import Prediction
from runners.encoder.queue_entries import Entry, PendingRequest, deliver, refuse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from runners.encoder.loaded_model import LoadedModel
    from runners.encoder.sequences import TokenizedText

logger = logging.getLogger(__name__)


class ModelWorker:
    """The thread that loads one model and then runs its batches until its queue is closed.

    Loading and running share a thread because of libgomp: after another thread has run a parallel operator, batches
    take 8-26 % longer. A predictor computes `Forward.at_once` batches at a time, each in its own thread.
    """

    def __init__(self, load: Callable[[], LoadedModel], on_end: Callable[[LoadedModel], None]) -> None:
        """
        Args:
            load: loads the model; called in the thread.
            on_end: called in each thread that ends, after the model's queue is closed.
        """
        self._load = load
        self._on_end = on_end
        self._threads: list[threading.Thread] = []

    async def start(self) -> LoadedModel:
        """Start the thread, and return the model once it is loaded.

        Raises:
            Exception: whatever `load` raises.
        """
        loading: Future[LoadedModel] = Future()
        self._start_thread(self._load_and_run, loading)
        return await asyncio.wrap_future(loading)

    def join(self, seconds: float) -> None:
        """Wait until the threads have ended, at most `seconds`."""
        deadline = time.monotonic() + seconds
        for thread in self._threads:
            # A thread that is killed inside torch aborts the process.
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start_thread(self, target: Callable[..., None], argument: object) -> None:
        thread = threading.Thread(target=target, args=(argument,), name="model", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _load_and_run(self, loading: Future[LoadedModel]) -> None:
        try:
            loaded = self._load()
        except BaseException as error:
            loading.set_exception(error)
            return
        for _ in range(1, loaded.forward.at_once):
            self._start_thread(self._run, loaded)
        loading.set_result(loaded)
        self._run(loaded)

    def _run(self, loaded: LoadedModel) -> None:
        try:
            while batch := loaded.queue.take(loaded.forward.mode):
                start = time.perf_counter()
                try:
                    run_batch(loaded, batch)
                except BaseException:
                    # The thread ends, and the model with it.
                    refuse(batch)
                    raise
                finally:
                    loaded.queue.finish(batch)
                loaded.queue.record_throughput(sum(entry.tokens for entry in batch), time.perf_counter() - start)
        finally:
            # Whatever ends this thread, no request may wait for it.
            loaded.close()
            self._on_end(loaded)


def run_batch(loaded: LoadedModel, batch: Sequence[Entry]) -> None:
    """Run a batch and deliver its answers.

    If a batch fails, its halves run again, and so on, so that only the texts that cause the failure fail. A predictor
    that is not available would fail every half, so its batches do not run again.
    """
    predictions: Sequence[Prediction | Exception | None]
    try:
        predictions = _predict(loaded, batch)
        _count_failed(loaded, batch, predictions)
    except Exception as error:
        is_unavailable = isinstance(error, PredictorError) and not isinstance(error, PredictorRefusalError)
        if len(batch) > 1 and not is_unavailable:
            middle = len(batch) // 2
            run_batch(loaded, batch[:middle])
            run_batch(loaded, batch[middle:])
            return
        predictions = [describe_text_error(entry.position, error) for entry in batch]
    answers: dict[PendingRequest, list[tuple[int, Prediction | Exception]]] = {}
    for entry, prediction in zip(batch, predictions, strict=True):
        if prediction is not None:
            answers.setdefault(entry.request, []).append((entry.position, prediction))
    deliver(answers)


def _predict(loaded: LoadedModel, batch: Sequence[Entry]) -> list[Prediction | Exception | None]:
    """The answer to the text of each entry: None while other sequences of the text are missing, else a prediction.

    If the scores of a sequence are not finite, the answer is an error.
    """
    scores = compute_scores(loaded, [entry.text for entry in batch])
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
        return None if parts is None else loaded.encoder_task.predict(parts, entry.encoded, entry.options)
    except Exception as error:
        # The protocol that answers the request logs it.
        return describe_text_error(entry.position, error)


def _non_finite_error(loaded: LoadedModel, position: int) -> Exception:
    if loaded.predictor is not None:
        return PredictorAnswerError(f"the predictor's scores of text {position} are not finite (NaN or infinity)")
    name = loaded.encoder_task.arguments.model_name
    dtype = str(loaded.model.dtype).removeprefix("torch.")
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
        NON_FINITE_TEXTS.labels(loaded.encoder_task.arguments.model_name).inc(len(failed))
        logger.error("%d of %d texts failed: %s", len(failed), len(batch), next(iter(failed.values())))


def compute_scores(loaded: LoadedModel, texts: Sequence[TokenizedText]) -> list[NDArray[np.float32]]:
    """Run the model on some texts: float32 [rows of the text, classes] each.

    Raises:
        InputError: the model refuses a text. Some classifiers need an end-of-text token, for example.
    """
    import torch

    with torch.inference_mode():
        try:
            rows, counts = loaded.forward.run(texts)
        except (AssertionError, ValueError) as error:
            raise InputError(f"the model does not run on it: {brief(error)}") from error
        return loaded.encoder_task.split_scores(rows, counts)
