"""What protocols call: a model that can be loaded and asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from runners.core.predictions import Options, Prediction, TensorSpec, TextInput, TokenInput
from runners.core.task import Task


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
    def busy(self) -> bool:
        """Whether requests are under way."""

    @property
    def default_options(self) -> Options:
        """What the operator's arguments ask of every text."""

    def class_name(self, index: int) -> str:
        """What one of the classes is called that `logits` has scores for; for fill-mask a token of the vocabulary."""

    @property
    def properties(self) -> Mapping[str, str]:
        """What else a client may want to know of the model."""

    @property
    def answer_options(self) -> frozenset[str]:
        """The names of `AnswerOptions` and `OverflowOptions` that its task has; none until it is loaded."""

    def outputs(self, options: Options) -> Sequence[TensorSpec]:
        """The tensors of an answer, where the request names none."""

    def named_outputs(self) -> Sequence[TensorSpec]:
        """The tensors that a request gets only by their name."""

    async def load(self) -> None:
        """Load and warm the model.

        Raises:
            RunnerError: it cannot be served.
        """

    async def unload(self) -> None:
        """Refuse what comes, let what is under way end, and free the memory; `load` may follow."""

    def close(self) -> None:
        """Stop; what waits fails. Blocks until what runs is done."""

    async def infer(self, texts: Sequence[TextInput | TokenInput], options: Options) -> list[Prediction]:
        """One prediction a text, in order.

        Raises:
            InputError: a text cannot be served; the message names its position.
            ModelNotReadyError: the model is not loaded.
        """
