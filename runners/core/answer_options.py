"""The options of an encoder's answer, which a request or, for all requests, the operator sets."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class ScoreFunction(StrEnum):
    """The functions that convert logits to scores, under the names of `transformers`' pipelines."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    NONE = "none"


class AggregationStrategy(StrEnum):
    """The ways to merge tokens into entities, under the names of `transformers`' pipeline."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"


class WindowAggregation(StrEnum):
    """The functions that combine the logits of a text's windows."""

    MEAN = "mean"
    MAX = "max"


class TruncationSide(StrEnum):
    """The ends of a text, under the names of `transformers`' tokenizers."""

    LEFT = "left"
    RIGHT = "right"


def split_names(value: object) -> object:
    """A tuple of the names in a list, or in a string with commas."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list) else value


def _check_template(value: str) -> str:
    if "{}" not in value:
        raise ValueError("it must have {} where the label goes")
    return value


class AnswerOptions(BaseModel):
    """Options of answers: arguments of the server, which the `parameters` of a request override.

    Each task has some of them (`EncoderTask.answer_options`).
    """

    model_config = ConfigDict(frozen=True)

    @property
    def asks_for_records(self) -> bool:
        """Whether the options ask for an answer of records, with names and scores."""
        return any(getattr(self, name) != default for name, default in _WITHOUT_RECORDS.items())

    labels: bool = Field(
        False,
        description="sequence classification, text ranking and zero-shot classification without `candidate_labels` "
        "answer with the name and the score of the best class instead of its number; token classification does so for "
        "every token",
    )
    top_k: int | None = Field(
        None,
        ge=1,
        description="sequence classification, text ranking, zero-shot classification, fill-mask and question "
        "answering answer with this many best classes, tokens or answers, each with its score",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="sequence classification, text ranking and zero-shot classification answer only with classes "
        "that have at least this score; unset, 0.5 applies if a text can have several labels",
    )
    function_to_apply: ScoreFunction | None = Field(
        None,
        strict=False,
        description="sequence classification, text ranking and zero-shot classification without `candidate_labels` "
        "convert logits to scores with this function: `softmax`, `sigmoid` or `none`; unset, with the one that the "
        "model was trained for",
    )
    targets: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (), description="fill-mask scores only these words, each of which must be one token of the vocabulary"
    )
    aggregation_strategy: AggregationStrategy | None = Field(
        None,
        strict=False,
        description="token classification merges tokens into entities with this strategy: `simple`, `first`, "
        "`average` or `max`; `none` answers with a record for every token",
    )
    ignore_labels: Annotated[tuple[str, ...] | None, BeforeValidator(split_names)] = Field(
        None,
        description="token classification leaves out records with these labels; unset, `O`; an empty list keeps all",
    )
    candidate_labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(split_names)] = Field(
        (),
        description="zero-shot classification scores these labels and answers with their names and scores, best first",
    )
    hypothesis_template: Annotated[str, AfterValidator(_check_template)] = Field(
        "This example is {}.", description="zero-shot classification puts each label in place of `{}` in this sentence"
    )
    multi_label: bool = Field(
        False,
        description="zero-shot classification scores each label on its own; unset, the scores of all labels add up "
        "to 1",
    )
    max_answer_len: int = Field(15, ge=1, description="question answering finds answers of at most this many tokens")
    handle_impossible_answer: bool = Field(
        False,
        description="question answering may answer with an empty text, meaning that the context has no answer, if "
        "the model was trained for that",
    )
    dimensions: int | None = Field(
        None,
        ge=1,
        lt=2**31,
        description="text embedding truncates each vector to this many numbers, and normalizes it again if the model "
        "normalizes its vectors, unless `normalize` is `false`; only for models trained for that (Matryoshka)",
    )
    max_active_dims: int | None = Field(
        None,
        ge=1,
        lt=2**31,
        description="sparse embedding answers with this many entries of the vocabulary at most, those with the highest "
        "values",
    )
    normalize: bool | None = Field(
        None,
        description="text embedding scales each vector to length 1; `false` leaves the vectors as the model's own "
        "modules make them; unset, only those that `dimensions` truncates are scaled, if the model normalizes",
    )
    prompt_name: str | None = Field(
        None,
        description="text embedding and sparse embedding put the prompt with this name in the model's "
        "`config_sentence_transformers.json` before every text; unset, its default prompt",
    )


# The defaults of the options that turn an answer into records; the other options only change what records contain.
_WITHOUT_RECORDS = {
    name: AnswerOptions.model_fields[name].default
    for name in (
        "labels", "top_k", "threshold", "function_to_apply", "targets", "aggregation_strategy", "ignore_labels",
        "candidate_labels",
    )
}  # fmt: skip


class OverflowOptions(BaseModel):
    """Options for texts that are longer than the model takes: arguments of the server, and `parameters` of requests."""

    model_config = ConfigDict(frozen=True)

    @property
    def only_truncates(self) -> bool:
        """Whether long texts are truncated, without windows, and the answer does not count the tokens that are lost."""
        return self.truncation and self.stride is None and not self.return_truncated_tokens

    truncation: bool = Field(
        True, description="the server truncates a text that is longer than the model accepts; `false` refuses it"
    )
    truncation_side: TruncationSide | None = Field(
        None,
        strict=False,
        description="a text that is truncated loses its end (`right`) or its beginning (`left`); unset, what the "
        "tokenizer's files say, which is nearly always `right`",
    )
    stride: int | None = Field(
        None,
        ge=0,
        lt=2**31,
        description="sequence classification, text ranking, zero-shot classification without `candidate_labels`, token "
        "classification, fill-mask and question answering read a longer text to its end, in windows that overlap by "
        "this many tokens",
    )
    window_aggregation: WindowAggregation = Field(
        WindowAggregation.MEAN,
        strict=False,
        description="sequence classification, text ranking and zero-shot classification without `candidate_labels` "
        "combine the logits of the windows of a text with this function: `mean` or `max`",
    )
    return_truncated_tokens: bool = Field(
        False, description="the answer says how many tokens of each text were truncated, as `truncated_tokens`"
    )
