"""What a request asks of a model: texts or tokens and options in, one prediction a text out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AnswerOptions, OverflowOptions
from runners.core.generation import DEFAULT_PROMPT_OPTIONS, PromptOptions, Sampling

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
    overflow: OverflowOptions = field(default_factory=OverflowOptions)
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
class Records:
    """Named columns, float32, int64 or str objects, all of one shape.

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

    output: Numbers | Text | ClassScores | VocabularyScores | Records
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
