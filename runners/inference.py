"""The typed call between the protocols and the runners: texts and options in, one prediction a text out.

Imports no torch and no HTTP, so that both sides can.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from runners.answers import AnswerOptions, ReadingOptions
from runners.errors import RunnerError
from runners.generation import DEFAULT_PROMPT_OPTIONS, PromptOptions, Sampling
from runners.task import Task

# The output that a model which ranks texts has for the score of a pair.
RELEVANCE = "relevance"


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text, or a pair of texts; or a text that the caller has split into words, then `text` is those joined."""

    text: str
    pair: str | None = None
    words: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class TokenInput:
    """One text that the caller has tokenized: int64 [tokens] each, special tokens included, padding left out.

    `token_type_ids` are zeros where the caller gives none.
    """

    input_ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None = None


class Output(StrEnum):
    """What a classification or fill-mask prediction is made of."""

    LABELS = "labels"
    PROBABILITIES = "probabilities"
    RAW_LOGITS = "raw_logits"


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller wants of each text; `sampling` and `prompt` are for generators, the rest for the others.

    `tensors` are outputs wanted by name, of those that `Runner.named_outputs` lists.
    """

    output: Output = Output.LABELS
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    reading: ReadingOptions = field(default_factory=ReadingOptions)
    offsets: bool = False
    tensors: frozenset[str] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    prompt: PromptOptions = DEFAULT_PROMPT_OPTIONS


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
class Table:
    """Records: columns by name, float32, int64 or str objects, all of one shape.

    [] is a record, [records] a list of them, [masks, records] a list for every mask.
    """

    columns: Mapping[str, NDArray[Any]]

    @property
    def size(self) -> int:
        return sum(column.size for column in self.columns.values())


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text.

    `offsets` is int64 [tokens, 2]: where each token starts and ends in the text, (0, 0) for special tokens.
    `tensors` are those asked for by name, each of one text's shape: float32, int64, or str objects.
    `tokens` is how many the model read, special ones and a prompt's included; 0 where nobody counts them.
    """

    output: Numbers | Text | ClassScores | VocabularyScores | Table
    offsets: NDArray[np.int64] | None = None
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as the Open Inference Protocol describes it; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


# How many tokens of a text were left out; a named output of every model that reads whole texts or truncates them.
TRUNCATED_TOKENS = TensorSpec("truncated_tokens", "INT64", (-1,))


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
        """The names of `AnswerOptions` and `ReadingOptions` that its task has; none until it is loaded."""

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


class ModelState(StrEnum):
    """Where a model is on its way; the names are those of Triton's repository extension."""

    UNAVAILABLE = "UNAVAILABLE"
    LOADING = "LOADING"
    READY = "READY"
    UNLOADING = "UNLOADING"


class _Slot:
    """A model's place: the model, and what is being done with it."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.changing: ModelState | None = ModelState.LOADING
        self.reason = ""
        self.lock = asyncio.Lock()

    @property
    def state(self) -> ModelState:
        if self.changing is not None:
            return self.changing
        return ModelState.READY if self.runner.ready else ModelState.UNAVAILABLE


class Models:
    """The models of this server by name; they are loaded and unloaded one after another."""

    def __init__(self, runners: Sequence[Runner]) -> None:
        # Whether a call reaches all there are: another worker has models of its own.
        self.changeable = True
        slots = [_Slot(runner) for runner in runners]
        self._slots: Mapping[str, _Slot] = {name: slot for slot in slots for name in slot.runner.names}

    @property
    def names(self) -> list[str]:
        return list(self._slots)

    @property
    def first(self) -> Runner:
        """The model that a request means which names none."""
        return next(iter(self._slots.values())).runner

    @property
    def ready(self) -> bool:
        """Whether all models are ready, as the Open Inference Protocol defines a ready server."""
        return all(slot.runner.ready for slot in self._slots.values())

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return any(slot.runner.busy for slot in self._slots.values())

    @property
    def live(self) -> bool:
        """Whether no model has died."""
        return not any(slot.runner.failed for slot in self._slots.values())

    def find(self, name: str) -> Runner | None:
        slot = self._slots.get(name)
        return None if slot is None else slot.runner

    def state(self, name: str) -> tuple[ModelState, str]:
        """A model's state, and why it is unavailable."""
        slot = self._slots[name]
        return slot.state, slot.reason if slot.state is ModelState.UNAVAILABLE else ""

    async def load(self, name: str) -> None:
        """Load a model, unless it is loaded.

        Raises:
            RunnerError: it cannot be served.
        """
        slot = self._slots[name]
        async with slot.lock:
            if slot.runner.ready:
                return
            slot.changing = ModelState.LOADING
            try:
                await slot.runner.load()
            except RunnerError as error:
                slot.reason = str(error)
                raise
            finally:
                slot.changing = None

    async def unload(self, name: str) -> None:
        """Unload a model, once what is under way has ended."""
        slot = self._slots[name]
        async with slot.lock:
            slot.changing = ModelState.UNLOADING
            try:
                await slot.runner.unload()
                slot.reason = "unloaded"
            finally:
                slot.changing = None
