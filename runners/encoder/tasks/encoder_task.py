"""The base class of all tasks, and that of the tasks that score classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from runners.core.answer_options import AnswerOptions, TruncationSide
from runners.core.arguments import Arguments
from runners.core.errors import InputError
from runners.core.predictions import (
    LABELS,
    LOGITS,
    MAIN,
    OFFSETS,
    PROBABILITIES,
    TRUNCATED_TOKENS,
    ClassScores,
    MainOutput,
    Numbers,
    Options,
    OutputSpec,
    Prediction,
    Records,
    Text,
    TextInput,
    VocabularyScores,
)
from runners.core.request_options import SupportedOptions
from runners.core.task import Task
from runners.encoder.forward import TokenSelection
from runners.encoder.pooled_head import TokenPooling
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.tasks.probabilities import softmax
from runners.encoder.tokenization import TextTokenizer
from runners.encoder.transformer_settings import TransformerOutput, TransformerSettings

# KServe prints probabilities with four decimals.
PROBABILITY_DECIMALS = 4
# Most tasks have these options for texts that are too long.
TRUNCATION = frozenset({"truncation", "truncation_side", "return_truncated_tokens"})
# The named outputs of every classification.
CLASS_OUTPUTS = frozenset({LOGITS, PROBABILITIES, LABELS})


class EncoderTask(ABC):
    """What is done with one loaded model: how texts are tokenized, and how scores become an answer.

    Attributes:
        auto_class: the `transformers` auto class that loads the model.
        accepts_pairs: whether a text may be a pair.
        needs_pairs: whether every text must be a pair.
        accepts_words: whether a text may be split into words.
        selection: which tokens' scores the task reads.
        model_outputs: how many tensors the model's head returns; a predictor can return one only.
        runs_on_predictor: whether a predictor may run the model.
        returns_offsets: whether an answer can have the offsets of tokens.
        sentence_transformer: what sentence-transformers calls the outputs of such a model; None if it has no such task.
        unused_weights: prefixes of weights that may be missing from a checkpoint, since the task does not read them.
        answer_options: names of the `AnswerOptions` that the task has.
        overflow_options: names of the `OverflowOptions` that the task has.
        scores_classes: whether `return_probabilities` and `return_raw_logits` change the answer.
        excluded_outputs: by option, the named outputs that a request cannot have beside it.
        pooled_widths: the sizes of a text's vector that a predictor may return, for a task that pools tokens.
    """

    auto_class: ClassVar[type[Any]]
    accepts_pairs: ClassVar[bool] = False
    needs_pairs: ClassVar[bool] = False
    accepts_words: ClassVar[bool] = False
    selection: ClassVar[TokenSelection] = TokenSelection.ALL
    model_outputs: ClassVar[int] = 1
    runs_on_predictor: ClassVar[bool] = True
    returns_offsets: ClassVar[bool] = False
    sentence_transformer: ClassVar[TransformerOutput | None] = None
    unused_weights: ClassVar[tuple[str, ...]] = ()
    answer_options: ClassVar[frozenset[str]] = frozenset()
    scores_classes: ClassVar[bool] = True
    excluded_outputs: ClassVar[Mapping[str, frozenset[str]]] = {}
    overflow_options: ClassVar[frozenset[str]] = TRUNCATION
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
            arguments: they say where the model's files are; some tasks read more of them.
            settings: the model's sentence-transformers settings.
            model: only its config and its class are read; the weights may be on a predictor.
            device: where the task's own weights go, if it has any.
        """
        self.arguments = arguments
        self.config = model.config
        self.tokenizer = tokenizer
        self.device = device
        self.lower_case = settings.lower_case
        self.recommended_length = settings.max_length
        self.prepare()

    def prepare(self) -> None:  # noqa: B027
        """Read what the task needs from the model's config and files.

        Raises:
            ModelLoadError: the model cannot do the task.
        """

    def set_width(self, width: int) -> None:  # noqa: B027
        """Set the size of the model's token vectors, for a task that pools them."""

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        """Refuse a text before the model runs it.

        Raises:
            InputError: the text cannot be served; the caller adds its position.
        """
        if not len(encoded.text.input_ids):
            raise InputError("it has no tokens")

    def check_options(self, options: Options) -> None:  # noqa: B027
        """Check options against the model, such as the names of its prompts.

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
        return SupportedOptions(task, names, self.scores_classes, self.excluded_outputs, check=self.check_options)

    def tokenize(
        self, tokenizer: TextTokenizer, texts: Sequence[TextInput], options: Options, first_position: int = 0
    ) -> list[EncodedText]:
        """Encode texts for the model; called in a tokenizer thread.

        Args:
            first_position: position of the first text in its request.

        Raises:
            InputError: the options do not allow a text; the message names its position.
        """
        return tokenizer.tokenize(
            texts,
            OFFSETS in options.outputs,
            self.needs_token_spans(options),
            self.prompt(options.answer),
            options.overflow,
            first_position,
            options.prompt,
        )

    def count_sequences(self, options: Options) -> int:
        """How many sequences the model computes for a text that is not too long."""
        return 1

    def reads_to_end(self, options: Options) -> bool:
        """Whether all of a text is tokenized, however long it is."""
        overflow = options.overflow
        return not overflow.only_truncates or overflow.truncation_side is TruncationSide.LEFT

    def needs_token_spans(self, options: Options) -> bool:
        """Whether the answer needs the places of tokens in the text."""
        return False

    def prompt(self, answer_options: AnswerOptions) -> str:
        """The prompt that is put in front of every text."""
        return ""

    def count_scores(self, text: TokenizedText) -> int:
        """How many numbers the scores of a text have; 0 if they are few, as those of one row."""
        return 0

    def count_records(self, text: TokenizedText, options: Options) -> int:
        """How many values the records of a text have at most; 0 if they are few."""
        return 0

    def count_numbers(self, prediction: Prediction) -> int:
        """How many numbers an answer has whose size is not known before the model has run; 0 if it is."""
        return 0

    @property
    def pooling(self) -> TokenPooling | None:
        """Pools the scores of a text's tokens, for a task that reads these."""
        return None

    def reduce_rows(self, rows: Tensor, counts: Sequence[int], options: Sequence[Options]) -> Tensor:
        """What `split_scores` needs of the model's output; it runs on the model's device and does not wait for it.

        Args:
            rows: [rows, classes], of all texts.
            counts: how many of the rows belong to each text.
            options: those of each text.

        Returns:
            float32, on the same device.
        """
        return rows.float()

    def split_scores(
        self, scores: NDArray[np.float32], counts: Sequence[int], options: Sequence[Options]
    ) -> list[NDArray[np.float32]]:
        """Split the scores of a batch by text.

        Args:
            scores: what `reduce_rows` has returned for the same `counts` and `options`.

        Returns:
            float32 [rows of the text, classes] for each text.
        """
        # Rows after the last text are padding.
        return np.split(scores, np.cumsum(counts))[:-1]

    def compute_scores(
        self, rows: Tensor, counts: Sequence[int], options: Sequence[Options]
    ) -> list[NDArray[np.float32]]:
        """`reduce_rows`, the copy to the host, for which it waits, and `split_scores`."""
        return self.split_scores(self.reduce_rows(rows, counts, options).cpu().numpy(), counts, options)

    def condense(self, scores: NDArray[np.float32], text: TokenizedText, options: Options) -> NDArray[Any]:
        """The part of a sequence's scores that is kept until the text's other sequences have run."""
        return scores

    def predict(self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options) -> Prediction:
        """The answer to one text.

        Args:
            parts: what `condense` has returned for each of its sequences.
        """
        scores = self.merge_windows(parts, encoded, options) if encoded.kept_tokens or len(parts) > 1 else parts[0]
        records = self.to_records(scores, encoded, options.answer)
        columns = frozenset() if records is None else records.columns.keys()
        outputs: dict[str, MainOutput | NDArray[Any]] = {}
        outputs[MAIN] = self.output(scores, options) if records is None else records
        for name in options.outputs - columns:
            if name == TRUNCATED_TOKENS:
                outputs[name] = np.array(encoded.truncated_tokens)
            elif name != OFFSETS:
                outputs[name] = self.named_output(name, scores)
            elif encoded.text.offsets is not None:
                outputs[name] = encoded.text.offsets
        return Prediction(outputs, encoded.tokens)

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """Merge the scores of a text's sequences, for a task that has several sequences per text."""
        raise NotImplementedError

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """The answer to one text as records; None if the options ask for no records."""
        return None

    @property
    @abstractmethod
    def width(self) -> int:
        """How many numbers the model returns per row."""

    @abstractmethod
    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | Text | ClassScores | VocabularyScores:
        """The main output of one text, unless the answer is records."""

    def named_output(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """One of `named_outputs` for one text."""
        raise NotImplementedError(name)

    @abstractmethod
    def outputs(self, options: Options) -> list[OutputSpec]:
        """The outputs of an answer to a request that names none; the columns of its records, if it has records."""

    def named_outputs(self) -> list[OutputSpec]:
        """The outputs that a request gets only if it names them."""
        return []

    def class_name(self, index: int) -> str:
        """The name of a class, for a task that has classes."""
        raise NotImplementedError

    @property
    def properties(self) -> dict[str, str]:
        """What else a client needs to know to use the model."""
        return {}


class ClassificationTask(EncoderTask):
    """A task whose model scores every class; its named outputs are `CLASS_OUTPUTS`."""

    def named_output(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """float32 [..., classes] for `logits` and `probabilities`, str objects [...] for `labels`."""
        match name:
            case "logits":
                return scores
            case "probabilities":
                return self.probabilities(scores)
            case "labels":
                return self._names(scores.argmax(axis=-1))
        return super().named_output(name, scores)

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """float32, in the shape of the logits."""
        return softmax(logits)

    def class_name(self, index: int) -> str:
        names: dict[int, str] = self.config.id2label  # type: ignore[assignment]
        return str(names.get(index, f"LABEL_{index}"))

    def named_outputs(self) -> list[OutputSpec]:
        scores = [OutputSpec(name, np.float32, (*self.rows_shape, self.classes)) for name in (LOGITS, PROBABILITIES)]
        return [*scores, OutputSpec(LABELS, str, self.rows_shape)]

    @property
    def width(self) -> int:
        return self.classes

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.config.num_labels or 0)

    @property
    @abstractmethod
    def rows_shape(self) -> tuple[int, ...]:
        """The shape of a batch without its classes: [texts] or [texts, tokens], -1 each."""

    def _names(self, indices: NDArray[np.int64]) -> NDArray[np.object_]:
        names = [self.class_name(index) for index in np.ravel(indices).tolist()]
        return np.array(names, dtype=object).reshape(np.shape(indices))
