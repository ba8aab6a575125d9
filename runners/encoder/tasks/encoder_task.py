"""What all tasks have in common, and what those have that score classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.core.answer_options import AnswerOptions
from runners.core.arguments import Arguments
from runners.core.errors import InputError
from runners.core.predictions import (
    TRUNCATED_TOKENS,
    ClassScores,
    Numbers,
    Options,
    Prediction,
    Records,
    TensorSpec,
    Text,
    TextInput,
    VocabularyScores,
)
from runners.core.request_options import SupportedOptions
from runners.core.task import Task
from runners.encoder.forward import Rows
from runners.encoder.sequences import Reading, TokenizedText
from runners.encoder.tasks.probabilities import softmax
from runners.encoder.tokenization import TRUNCATE, TextTokenizer
from runners.encoder.transformer_settings import TransformerSettings

# KServe prints probabilities with four decimals.
PROBABILITY_DECIMALS = 4
# What may be asked of a text that is too long, whatever the task.
TRUNCATION = frozenset({"truncation", "return_truncated_tokens"})
# The named outputs of every classification.
OF_CLASSES = frozenset({"logits", "probabilities", "labels"})


class Head(ABC):
    """A task on a loaded model."""

    auto_class: ClassVar[type[Any]]
    accepts_pairs: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    accepts_words: ClassVar[bool] = False
    rows: ClassVar[Rows] = Rows.ALL
    # How many tensors the model's output layer gives; a predictor returns one.
    tensors_of_model: ClassVar[int] = 1
    # Whether an answer can have the place of each token in its text.
    returns_offsets: ClassVar[bool] = False
    # Weights that may be missing from a checkpoint because the task does not read them.
    unused_weights: ClassVar[tuple[str, ...]] = ()
    # Those of `AnswerOptions` that the task has.
    answer_options: ClassVar[frozenset[str]] = frozenset()
    # Whether `return_probabilities` and `return_raw_logits` change the answer.
    scores_classes: ClassVar[bool] = True
    # By option, the named outputs that a request cannot have beside it.
    excluded_outputs: ClassVar[Mapping[str, frozenset[str]]] = {}
    # Those of `OverflowOptions`.
    overflow_options: ClassVar[frozenset[str]] = TRUNCATION
    # How many numbers a text's vector may have that a predictor has pooled, for a task that pools rows.
    pooled_widths: tuple[int, ...] = ()

    def __init__(
        self,
        arguments: Arguments,
        settings: TransformerSettings,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
    ) -> None:
        """
        Args:
            arguments: where the model came from; some heads read more files from there.
            settings: what the model's sentence-transformers files say of texts.
            model: its config and form are read here; its weights may be elsewhere.
            device: where the head's own weights go, if it has some.
        """
        self.arguments = arguments
        self.config = model.config
        self.tokenizer = tokenizer
        self.device = device
        self.lower_case = settings.lower_case
        self.recommended_length = settings.max_length
        self.prepare()

    def prepare(self) -> None:  # noqa: B027
        """Read what the task needs to know of the model; not every task does.

        Raises:
            ModelLoadError: the model cannot do the task.
        """

    def learn_width(self, width: int) -> None:  # noqa: B027
        """Take how many numbers a row of the loaded model has, for a head that makes vectors of rows."""

    def check(self, reading: Reading, wanted: AnswerOptions) -> None:
        """Refuse a text before it takes the model's time.

        Raises:
            InputError: the text cannot be served; the caller adds its position.
        """
        if not len(reading.text.input_ids):
            raise InputError("it has no tokens")

    def check_options(self, options: Options) -> None:  # noqa: B027
        """Check what only the model can tell of options, such as the names of its prompts.

        Raises:
            InputError: the model cannot do what an option asks for.
        """

    @property
    def needed_tokens(self) -> Collection[int]:
        """Ids of tokens that every text must have."""
        return ()

    def supported_options(self, task: Task) -> SupportedOptions:
        """The options that a request may set."""
        names = self.answer_options | self.overflow_options
        return SupportedOptions(task, names, self.scores_classes, self.excluded_outputs, self.check_options)

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[Reading]:
        """What the model is to read of each text; called in the tokenizer's thread.

        Args:
            first_position: where the first text stands in its request.

        Raises:
            InputError: a text cannot be read as the options say; the message names its position.
        """
        return tokenizer.tokenize(
            texts,
            options.offsets,
            self.needs_source(options),
            self.prompt(options.answer),
            options.overflow,
            first_position,
        )

    def count_sequences(self, options: Options) -> int:
        """How many sequences a text makes that is not too long."""
        return 1

    def reads_to_end(self, options: Options) -> bool:
        """Whether a text is tokenized to its end, however long it is."""
        return options.overflow != TRUNCATE

    def needs_source(self, options: Options) -> bool:
        """Whether the answer is made of more of the text than its token ids."""
        return False

    def prompt(self, wanted: AnswerOptions) -> str:
        """What goes in front of every text."""
        return ""

    def count_scores(self, text: TokenizedText) -> int:
        """How many numbers the scores of a text are, where that is worth counting."""
        return 0

    def count_records(self, text: TokenizedText, options: Options) -> int:
        """How many values the records of a text have at most, where that is worth counting."""
        return 0

    def read(self, rows: Tensor, counts: Sequence[int]) -> list[NDArray[np.float32]]:
        """Share out what the model says of the rows the task reads: float32 [rows of the text, classes] each."""
        return np.split(to_numpy(rows), np.cumsum(counts)[:-1])

    def condense(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> NDArray[Any]:
        """What is kept of the scores of one sequence until those of all the text's sequences are there."""
        return scores

    def predict(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> Prediction:
        """The answer to one text from what `read` gave of its sequences."""
        scores = self.gather(parts, reading, options) if reading.own or len(parts) > 1 else parts[0]
        table = self.tabulate(scores, reading, options.answer)
        columns = frozenset() if table is None else table.columns.keys()
        return Prediction(
            self.output(scores, options) if table is None else table,
            reading.text.offsets if options.offsets else None,
            {
                name: np.array(reading.left_out) if name == TRUNCATED_TOKENS.name else self.tensor(name, scores)
                for name in options.tensors - columns
            },
            tokens=reading.tokens,
        )

    def gather(self, parts: Sequence[NDArray[np.float32]], reading: Reading, options: Options) -> NDArray[np.float32]:
        """One text's scores from those of its sequences, for a task that makes several of one text."""
        raise NotImplementedError

    def tabulate(self, scores: NDArray[np.float32], reading: Reading, wanted: AnswerOptions) -> Records | None:
        """The answer to one text as records, where the options ask for that; None where they do not."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers the model says of a row."""

    @abstractmethod
    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | Text | ClassScores | VocabularyScores:
        """`output-0` of one text."""

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """One of `named_outputs`, of one text."""
        raise NotImplementedError(name)

    @abstractmethod
    def outputs(self, options: Options) -> list[TensorSpec]:
        """The tensors of an answer, where the request names none: the columns of its records, if it has those."""

    def named_outputs(self) -> list[TensorSpec]:
        """The tensors that a request gets only by name."""
        return []

    def class_name(self, index: int) -> str:
        """What a class is called, for a task that has some."""
        raise NotImplementedError

    @property
    def properties(self) -> dict[str, str]:
        """What a client has to know to ask."""
        return {}


class ClassificationHead(Head):
    """A head with a score for every class; its named outputs are those of `OF_CLASSES`."""

    def tensor(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [..., classes] for `logits` and `probabilities`, str [...] for `labels`."""
        match name:
            case "logits":
                return scores
            case "probabilities":
                return self.probabilities(scores)
            case "labels":
                return self._names(scores.argmax(axis=-1))
        return super().tensor(name, scores)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Float32 of the logits' shape."""
        return softmax(logits)

    def class_name(self, index: int) -> str:
        names: dict[int, str] = self.config.id2label  # type: ignore[assignment]
        return str(names.get(index, f"LABEL_{index}"))

    def named_outputs(self) -> list[TensorSpec]:
        scores = [TensorSpec(name, "FP32", (*self.rows_shape, self.classes)) for name in ("logits", "probabilities")]
        return [*scores, TensorSpec("labels", "BYTES", self.rows_shape)]

    @property
    def width(self) -> int:
        return self.classes

    @property
    def classes(self) -> int:
        """How many there are."""
        return int(self.config.num_labels or 0)

    @property
    @abstractmethod
    def rows_shape(self) -> tuple[int, ...]:
        """What a batch has a row of scores for: [texts] or [texts, tokens]."""

    def _names(self, indices: NDArray[np.int64]) -> NDArray[np.object_]:
        names = [self.class_name(index) for index in np.ravel(indices).tolist()]
        return np.array(names, dtype=object).reshape(np.shape(indices))


def to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.float().cpu().numpy()
    return array
