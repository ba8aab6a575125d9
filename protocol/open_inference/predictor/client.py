"""The client of the predictor: a server of the Open Inference Protocol, over REST or gRPC, that runs the model.

The client reads the metadata of the predictor's model before the first batch, and again after every error, because
another model may answer then.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from protocol.open_inference.predictor.grpc import GrpcWire
from protocol.open_inference.predictor.rest import RestWire
from protocol.open_inference.predictor.wire import Metadata, Wire, make_timeout_error
from protocol.output_tensors import wire_name
from protocol.tensors import BYTES, DTYPES, Tensor
from runners.core.arguments import Arguments
from runners.core.errors import (
    InputError,
    PredictorAnswerError,
    PredictorError,
    PredictorRefusalError,
    PredictorUnavailableError,
)
from runners.core.predictions import TOKEN_EMBEDDINGS, TRUNCATED_TOKENS
from runners.core.predictor import Predictor

logger = logging.getLogger(__name__)

_LOGITS = "logits"
# What a server like this one returns too, if it is asked for that.
_FURTHER = frozenset(map(wire_name, (TOKEN_EMBEDDINGS, TRUNCATED_TOKENS)))
_TOKEN_DATATYPE = "INT64"
_READY_SECONDS = 5.0
_FIRST_BACKOFF = 0.1
_LONGEST_BACKOFF = 2.0


def connect_predictor(arguments: Arguments) -> Predictor:
    """A connection to the predictor in the arguments; this call sends nothing."""
    wire = GrpcWire(arguments) if arguments.predictor_protocol == "grpc-v2" else RestWire(arguments)
    return OpenInferencePredictor(
        wire, arguments.predictor_request_timeout_seconds, arguments.predictor_request_retries
    )


class OpenInferencePredictor:
    """The predictor, over REST or gRPC; thread-safe."""

    def __init__(self, wire: Wire, seconds: float, retries: int) -> None:
        """
        Args:
            seconds: the time limit of a call, retries included.
            retries: how often the client repeats a call that may succeed later.
        """
        self._wire = wire
        self._seconds = seconds
        self._retries = retries
        self._metadata: Metadata | None = None
        self._failing = False
        self._refused = False
        self._closed = threading.Event()

    def infer(self, tensors: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        deadline = time.monotonic() + self._seconds
        for attempt in count():
            try:
                answer = self._ask(tensors, deadline)
            except PredictorError as error:
                self._metadata = None
                delay = min(_LONGEST_BACKOFF, _FIRST_BACKOFF * 2**attempt)
                may_succeed = isinstance(error, PredictorUnavailableError) and attempt < self._retries
                if may_succeed and time.monotonic() + delay < deadline and not self._closed.wait(delay):
                    continue
                self._note(error)
                raise
            self._note(None)
            return answer
        raise AssertionError("count() has no end")

    def ready(self) -> bool:
        try:
            return self._wire.ready(_READY_SECONDS)
        except PredictorError:
            return False

    def close(self) -> None:
        self._closed.set()
        self._wire.close()

    def _ask(self, tensors: Mapping[str, NDArray[np.int64]], deadline: float) -> NDArray[np.float32]:
        metadata = self._metadata
        if metadata is None:
            metadata = self._metadata = self._wire.metadata(self._left(deadline))
        inputs = [
            Tensor(name, _input_datatype(name, metadata), list(array.shape), array.ravel())
            for name, array in tensors.items()
        ]
        wanted = _choose_output(metadata.outputs) if metadata.outputs else None
        try:
            outputs = self._wire.infer(inputs, wanted, metadata.binary, self._left(deadline))
        except InputError as error:
            raise PredictorAnswerError(f"the predictor's answer is wrong: {error}") from error
        by_name = {tensor.name: tensor for tensor in outputs}
        tensor = by_name[_choose_output([*by_name])]
        if isinstance(tensor.flat, list):
            raise PredictorAnswerError(f"the predictor's output {tensor.name} is of texts; logits are numbers")
        return np.asarray(tensor.flat, np.float32).reshape(tensor.shape)

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if self._closed.is_set():
            raise PredictorUnavailableError("the server is shutting down")
        if left <= 0:
            raise make_timeout_error()
        return left

    def _note(self, error: PredictorError | None) -> None:
        """Log when the predictor begins to fail and when it answers again."""
        if isinstance(error, PredictorRefusalError):
            # A predictor may refuse all large batches and answer their parts, so this is logged once.
            if not self._refused:
                logger.warning("%s; this is said once", error)
            self._refused = True
            return
        if error is not None and not self._failing:
            cause: Any = error.__cause__
            details = cause.details() if isinstance(cause, grpc.RpcError) else cause
            logger.warning("%s (%s)", error, " ".join(str(details or "no further cause").split()))
        elif error is None and self._failing:
            logger.warning("the predictor answers again")
        self._failing = error is not None


def _input_datatype(name: str, metadata: Metadata) -> str:
    # The metadata of a server like this one lists only the input for texts, and KServe's lists none.
    if all(datatype == BYTES for datatype in metadata.datatypes.values()):
        return _TOKEN_DATATYPE
    if (datatype := metadata.datatypes.get(name)) in DTYPES:
        return datatype
    raise PredictorAnswerError(
        f"the predictor's model has no input {name} of numbers, it has {', '.join(metadata.datatypes)}: set "
        "tensor_input_names to what it is to be sent"
    )


def _choose_output(names: Sequence[str]) -> str:
    if _LOGITS in names:
        return _LOGITS
    others = [name for name in names if name not in _FURTHER]
    if len(others) == 1:
        return others[0]
    raise PredictorAnswerError(
        f"the predictor's model must have an output logits, or only one; it has {', '.join(names) or 'none'}"
    )
