"""The predictor: another server, which runs the model; this server tokenizes texts and turns scores into answers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_POLL_SECONDS = 1.0


class Predictor(Protocol):
    """A connection to the predictor; thread-safe."""

    def infer(self, tensors: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Run the model on a batch.

        Args:
            tensors: the model's inputs by name, int64 [texts, tokens] each.

        Returns:
            The model's one output, such as its logits: float32 [texts, ...].

        Raises:
            PredictorError: there is no answer.
        """

    def ready(self) -> bool:
        """Whether the predictor's model is ready now."""

    def close(self) -> None:
        """Close the connection; calls of `infer` that still run fail."""


class PredictorWatch:
    """Polls in a thread of its own, about once a second, whether the predictor is ready."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.ready = predictor.ready()
        if not self.ready:
            logger.warning("the predictor is not ready")
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="predictor-watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stopped.wait(_POLL_SECONDS):
            ready = self._predictor.ready()
            if ready is not self.ready:
                logger.warning("the predictor is %s", "ready again" if ready else "not ready")
            self.ready = ready
