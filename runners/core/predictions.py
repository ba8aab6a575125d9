"""The inputs and outputs of a model: texts or tokens with options, and one prediction for each text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, PromptOptions, Sampling

# Names of outputs; a protocol may call them otherwise on its wire.
# The answer itself, and the first output of every prediction.
MAIN = "main"
LOGITS = "logits"
PROBABILITIES = "probabilities"
LABELS = "labels"
# The score of a pair, of a model that ranks texts.
RELEVANCE = "relevance"
# Where each token starts and ends in the text.
OFFSETS = "offsets"
# The vector of each token, which an embedder pools.
TOKEN_EMBEDDINGS = "token_embeddings"
# How many tokens of the text were truncated.
TRUNCATED_TOKENS = "truncated_tokens"


@dataclass(frozen=True, slots=True)
class TextInput:
    """One text, or a pair of texts. If the caller has split the text into words, `text` is these words joined."""

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


class AnswerForm(StrEnum):
    """The form of the main output of a classification or of fill-mask."""

    LABELS = "labels"
    PROBABILITIES = "probabilities"
    RAW_LOGITS = "raw_logits"


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a request, resolved; `sampling` is a generator's, `prompt` everybody's, the others an encoder's.

    Attributes:
        form: the form of the main output.
        outputs: the names of the outputs that a prediction has beside the main one.
    """

    form: AnswerForm = AnswerForm.LABELS
    answer: AnswerOptions = field(default_factory=AnswerOptions)
    overflow: OverflowOptions = field(default_factory=OverflowOptions)
    outputs: frozenset[str] = frozenset()
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

    `decimals` is the number of decimals that protocols print; None for all.
    """

    values: NDArray[np.float32]
    decimals: int | None


@dataclass(frozen=True, slots=True)
class VocabularyScores:
    """The score of every vocabulary entry at every mask: float32 [masks, vocabulary]."""

    values: NDArray[np.float32]
    decimals: int | None


@dataclass(frozen=True, slots=True)
class Records:
    """Named columns, float32, int64 or str objects, all of one shape.

    [] is a record, [records] a list of them, [masks, records] a list for every mask.
    """

    columns: Mapping[str, NDArray[Any]]

    @property
    def size(self) -> int:
        return sum(column.size for column in self.columns.values())


MainOutput = Numbers | Text | ClassScores | VocabularyScores | Records


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one text.

    Attributes:
        outputs: by name, the main output first. The others are arrays of one text's shape: float32, int64, or str
            objects; `offsets` is int64 [tokens, 2], with (0, 0) for special tokens.
        tokens: how many tokens the model read, special tokens and a prompt's included; 0 if they are not counted.
    """

    outputs: Mapping[str, MainOutput | NDArray[Any]]
    tokens: int = 0

    @property
    def main(self) -> MainOutput:
        output = self.outputs[MAIN]
        assert not isinstance(output, np.ndarray)
        return output

    @property
    def records(self) -> Records:
        """The main output of a request whose options make records of it."""
        records = self.main
        assert isinstance(records, Records), "the options ask for records"
        return records

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """The outputs beside the main one."""
        return {name: output for name, output in self.outputs.items() if isinstance(output, np.ndarray)}


# The numpy type of an output's elements; str for texts.
ElementType = type[np.int64] | type[np.float32] | type[str]


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """An output of a batch.

    Attributes:
        shape: -1 is a dimension that varies; the first dimension is the number of texts.
        kind: `ClassScores` or `VocabularyScores` for the scores that protocols may print as maps, else `Numbers`.
    """

    name: str
    dtype: ElementType
    shape: tuple[int, ...]
    kind: type[Numbers | ClassScores | VocabularyScores] = Numbers
