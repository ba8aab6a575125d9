"""The typed call between the protocols and the runners: texts and options in, one prediction a text out.

Imports no torch and no HTTP, so that both sides can.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runners.generation import Sampling
from runners.task import Task


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text, or a pair of texts."""

    text: str
    pair: str | None = None


class Output(StrEnum):
    """What a classification or fill-mask prediction is made of."""

    LABELS = "labels"
    PROBABILITIES = "probabilities"
    RAW_LOGITS = "raw_logits"


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller wants of each text; `sampling` is for generators, the rest for the others."""

    output: Output = Output.LABELS
    offsets: bool = False
    sampling: Sampling = field(default_factory=Sampling)


@dataclass(frozen=True, slots=True)
class Numbers:
    """Label ids (int64), regression values or an embedding (float32); the shape is that of one text."""

    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Text:
    """A text as the prediction."""

    value: str


@dataclass(frozen=True, slots=True)
class ClassScores:
    """The score of every class: float32 [classes] for a text, [tokens, classes] for its tokens.

    `decimals` says to how many decimals they are shown, None for all.
    """

    values: NDArray[np.float32]
    decimals: int | None


@dataclass(frozen=True, slots=True)
class VocabularyScores:
    """The score of every vocabulary entry at every mask: float32 [masks, vocabulary]."""

    values: NDArray[np.float32]
    decimals: int | None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text.

    `offsets` is int64 [tokens, 2]: where each token starts and ends in the text, (0, 0) for special tokens.
    """

    output: Numbers | Text | ClassScores | VocabularyScores
    offsets: NDArray[np.int64] | None = None


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the Open Inference Protocol describes it; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class Runner(Protocol):
    """A model that can be asked."""

    @property
    def name(self) -> str:
        """The model's name in URLs."""

    @property
    def names(self) -> Sequence[str]:
        """All its names, the one above first."""

    @property
    def task(self) -> Task | None:
        """What it does; None until that is known."""

    @property
    def ready(self) -> bool:
        """Whether the model is loaded and warmed."""

    @property
    def failed(self) -> bool:
        """Whether it has died for good, so that the process must end."""

    @property
    def default_options(self) -> Options:
        """What the operator's arguments ask of every text."""

    def outputs(self, options: Options) -> Sequence[TensorSpec]:
        """The tensors of an answer."""

    async def load(self) -> None:
        """Load and warm the model.

        Raises:
            RunnerError: it cannot be served.
        """

    def close(self) -> None:
        """Stop; what waits fails. Blocks until what runs is done."""

    async def infer(self, texts: Sequence[TextInput], options: Options) -> list[Prediction]:
        """One prediction a text, in order.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
        """


class Models:
    """The models of this server by name."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        self._runners: Mapping[str, Runner] = {name: runner for runner in runners for name in runner.names}

    @property
    def names(self) -> list[str]:
        return list(self._runners)

    @property
    def first(self) -> Runner:
        """The model that a request means which names none."""
        return next(iter(self._runners.values()))

    @property
    def ready(self) -> bool:
        """Whether all models are ready, as the Open Inference Protocol defines a ready server."""
        return all(runner.ready for runner in self._runners.values())

    @property
    def live(self) -> bool:
        """Whether no model has died."""
        return not any(runner.failed for runner in self._runners.values())

    def find(self, name: str) -> Runner | None:
        return self._runners.get(name)
