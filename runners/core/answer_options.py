"""What may be asked of an encoder's answer, by a request or, for all requests, by the operator."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class ScoreFunction(StrEnum):
    """What makes scores of logits, under the names of `transformers`' pipelines."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class AggregationStrategy(StrEnum):
    """What makes entities of tokens, under the names of `transformers`' pipeline."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


class WindowAggregation(StrEnum):
    """What makes one row of logits of those that the windows of a text have."""

    MEAN = "mean"
    MAX = "max"


def split_names(value: object) -> object:
    """A comma list as a command line has it, or a list as a request has it, as a tuple."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


def _check_template(value: str) -> str:
    if "{}" not in value:
        raise ValueError("it must have {} where the label goes")
    return value


class AnswerOptions(BaseModel):
    """The options under one name for both: a flag, and a name in a request's `parameters`, which wins.

    Which of them a task has is its head's to say.
    """

    model_config = ConfigDict(frozen=True)

    @property
    def records(self) -> bool:
        """Whether anything is asked for that has names and scores for an answer."""
        return any(getattr(self, name) != default for name, default in _WITHOUT_RECORDS.items())

    labels: bool = Field(
        False, description="classification: name and score of the best class instead of its number; of every token for "
        "token classification",
    )  # fmt: skip
    top_k: int | None = Field(
        None, ge=1, description="classification and fill-mask: names and scores of so many, best first"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="classification: only classes with at least this score; 0.5 for several labels "
        "at once if unset",
    )  # fmt: skip
    function_to_apply: ScoreFunction | None = Field(
        None, strict=False, description="classification: `softmax`, `sigmoid` or `none` makes scores of logits; if "
        "unset what the model was trained for",
    )  # fmt: skip
    targets: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (), description="fill-mask: only these words, each one token of the vocabulary"
    )
    aggregation_strategy: AggregationStrategy | None = Field(
        None, strict=False, description="token classification: `simple`, `first`, `average` or `max` makes entities of "
        "tokens, `none` gives a record for every token",
    )  # fmt: skip
    ignore_labels: Annotated[tuple[str, ...] | None, BeforeValidator(split_names)] = Field(
        None, description="token classification: no records of these; `O` if unset, an empty list keeps all"
    )
    candidate_labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(split_names)] = Field(
        (), description="zero-shot classification: names and scores of these instead of the model's "
        "own classes, best first",
    )  # fmt: skip
    hypothesis_template: Annotated[str, AfterValidator(_check_template)] = Field(
        "This example is {}.", description="zero-shot classification: the sentence that a label makes, in place of `{}`"
    )
    multi_label: bool = Field(
        False, description="zero-shot classification: a score for each label by itself; if unset they add up to 1"
    )
    max_answer_len: int = Field(15, ge=1, description="question answering: most tokens of an answer")
    handle_impossible_answer: bool = Field(
        False,
        description="question answering: that there is none may be the answer, an empty one, for models trained so",
    )
    dimensions: int | None = Field(
        None, ge=1, lt=2**31, description="text embedding: only the first so many numbers of a vector, of length 1 "
        "again if the model's vectors are; for models trained so (Matryoshka)",
    )  # fmt: skip
    prompt_name: str | None = Field(
        None, description="text embedding: which of the prompts in the model's `config_sentence_transformers.json` "
        "goes before every text; its default prompt if unset",
    )  # fmt: skip


# What the options are that make records, where nothing is asked for; the others only say how.
_WITHOUT_RECORDS = {
    name: AnswerOptions.model_fields[name].default
    for name in (
        "labels", "top_k", "threshold", "function_to_apply", "targets", "aggregation_strategy", "ignore_labels",
        "candidate_labels",
    )
}  # fmt: skip


class OverflowOptions(BaseModel):
    """What is to be done with a text that is longer than the model takes, under one name for both as above."""

    model_config = ConfigDict(frozen=True)

    truncation: bool = Field(
        True, description="a longer text is cut to the length that the model takes; `false` refuses it"
    )
    stride: int | None = Field(
        None, ge=0, lt=2**31, description="classification, fill-mask, question answering: a longer text is read to its "
        "end, in windows that share so many tokens",
    )  # fmt: skip
    window_aggregation: WindowAggregation = Field(
        WindowAggregation.MEAN,
        strict=False,
        description="sequence classification: `mean` or `max` of the windows' logits",
    )
    return_truncated_tokens: bool = Field(
        False, description="say how many tokens of each text were left out, as `truncated_tokens`"
    )
