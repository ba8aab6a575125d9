"""The bodies of the Hugging Face inference protocol for tasks of encoders: inputs, and parameters by task.

Names and meanings are those of the hub's JSON schemas and of the pipelines of `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol.text_inputs import Inputs, read_text_inputs
from runners.core.answer_options import AggregationStrategy
from runners.core.errors import InputError
from runners.core.number_types import NonNegativeInt, PositiveInt
from runners.core.predictions import TextInput, TokenInput
from runners.core.request_limits import RequestLimits
from runners.core.runner import Runner

# The pipeline's default.
_TOP_TOKENS = 5
# The other protocols' names of parameters.
_OPTION_NAMES = {"doc_stride": "stride", "truncate": "truncation", "truncation_direction": "truncation_side"}

Names = str | list[str]
# Pipelines pass it to the tokenizer. Of a single text, only_first is the same as longest_first.
Truncation = bool | Literal["do_not_truncate", "longest_first", "only_first"]


class TextPair(msgspec.Struct, forbid_unknown_fields=True):
    """A text, or two."""

    text: str
    text_pair: str | None = None


class Question(msgspec.Struct, forbid_unknown_fields=True):
    """A question, and the text that has its answer."""

    question: str
    context: str


class Comparison(msgspec.Struct, forbid_unknown_fields=True):
    """Sentences that are compared with another."""

    source_sentence: str
    sentences: Annotated[list[str], Meta(min_length=1)]


class TextClassificationParameters(msgspec.Struct):
    """`top_k` is the number of best classes; all by default, as with `return_all_scores`, whose false stands for 1."""

    top_k: PositiveInt | None = None
    return_all_scores: bool | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    truncation: Truncation | None = None


class TokenClassificationParameters(msgspec.Struct):
    """`aggregation_strategy` merges tokens into entities; `simple` by default, as in the hosted service.

    `grouped_entities` is its older form: true for `simple`, false for `none`.
    """

    aggregation_strategy: AggregationStrategy | None = None
    grouped_entities: bool | None = None
    ignore_labels: Names | None = None
    stride: NonNegativeInt | None = None


class FillMaskParameters(msgspec.Struct):
    """`top_k` is the number of best tokens for each mask, 5 by default; `targets` are the only ones that are scored."""

    top_k: PositiveInt | None = None
    targets: Names | None = None
    truncation: Truncation | None = None


class QuestionAnsweringParameters(msgspec.Struct):
    """`doc_stride` is the number of tokens that windows of a long context share, `max_seq_len` the length of a window.

    The length is the server's. `max_question_len` has no effect, as in pipelines with fast tokenizers.
    """

    top_k: PositiveInt | None = None
    max_seq_len: PositiveInt | None = None
    max_question_len: PositiveInt | None = None
    doc_stride: NonNegativeInt | None = None
    max_answer_len: PositiveInt | None = None
    handle_impossible_answer: bool | None = None


class ZeroShotClassificationParameters(msgspec.Struct):
    """`hypothesis_template` has {} where the label goes; `multi_label` scores each label on its own."""

    candidate_labels: Names | None = None
    hypothesis_template: str | None = None
    multi_label: bool | None = None
    truncation: Truncation | None = None


class FeatureExtractionParameters(msgspec.Struct):
    """`normalize` scales vectors to length 1, which is the default. These may also stand beside `inputs`."""

    normalize: bool | None = None
    prompt_name: str | None = None
    truncate: bool | None = None
    truncation_direction: Literal["left", "right", "Left", "Right"] | None = None
    dimensions: PositiveInt | None = None


class SentenceSimilarityParameters(msgspec.Struct):
    """There are none."""


class EncoderRequest(msgspec.Struct, kw_only=True):
    """The body of a task."""

    inputs: Any
    parameters: Any = None

    @property
    def is_batch(self) -> bool:
        """Whether the answer is a list with an item for each input."""
        return isinstance(self.inputs, list)

    def read_texts(self, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
        """
        Raises:
            LimitExceededError: there are more texts than the operator allows.
            InputError: there is no text, or one is malformed.
        """
        items = self.inputs if self.is_batch else [self.inputs]
        limits.check("max_client_batch_size", len(items), "texts", "inputs")
        if not items:
            raise InputError("inputs is empty; give at least one text", "inputs")
        return [_read_text(item, position) for position, item in enumerate(items)]

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        """The options of the answer, under the names of the other protocols' `parameters`.

        The operator's defaults win over those of the protocol.

        Raises:
            InputError: parameters contradict each other, or lack what the task needs.
        """
        parameters = {} if self.parameters is None else msgspec.structs.asdict(self.parameters)
        options = {_OPTION_NAMES.get(name, name): value for name, value in parameters.items() if value is not None}
        if "truncation" in options:
            options["truncation"] = truncates(options["truncation"])
        return options


def _check_alone(options: Mapping[str, Any], name: str, older: str) -> None:
    if name in options:
        raise InputError(f"give one of {name} and {older}", older)


def truncates(truncation: Truncation) -> bool:
    """Whether texts that are too long are truncated; all of the tokenizer's strategies are one here."""
    return truncation not in (False, "do_not_truncate")


def _read_text(item: Any, position: int) -> TextInput:
    match item:
        case str():
            return TextInput(item)
        case TextPair():
            return TextInput(item.text, item.text_pair)
        case Question():
            return TextInput(item.question, item.context)
        case [text, pair]:
            return TextInput(text, pair)
    raise InputError(f"inputs[{position}] has {len(item)} texts; a pair is a list of two", "inputs")


class TextClassificationRequest(EncoderRequest, kw_only=True):
    """The body for text classification: texts, or pairs of texts."""

    # All classes.
    default_top_k: ClassVar[int | None] = None
    inputs: str | TextPair | list[str | TextPair | list[str]]
    parameters: TextClassificationParameters | None = None

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        if self.parameters is not None and self.parameters.truncation == "only_first" and self._has_pairs():
            raise InputError("truncation of pairs can be longest_first: the longer text is cut first", "truncation")
        options = super().read_options(runner, limits)
        if (returns_all := options.pop("return_all_scores", None)) is not None:
            _check_alone(options, "top_k", "return_all_scores")
            return {"top_k": limits.max_top_k if returns_all else 1, **options}
        default = runner.default_options.answer.top_k or self.default_top_k or limits.max_top_k
        return {"top_k": default, **options}

    def _has_pairs(self) -> bool:
        inputs = self.inputs if isinstance(self.inputs, list) else [self.inputs]
        return any(isinstance(each, list) or (isinstance(each, TextPair) and each.text_pair) for each in inputs)


class TokenClassificationRequest(EncoderRequest, kw_only=True):
    """The body for token classification."""

    default_strategy: ClassVar[AggregationStrategy] = AggregationStrategy.SIMPLE
    inputs: str | list[str]
    parameters: TokenClassificationParameters | None = None

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        options = super().read_options(runner, limits)
        strategy = runner.default_options.answer.aggregation_strategy or self.default_strategy
        if (is_grouped := options.pop("grouped_entities", None)) is not None:
            _check_alone(options, "aggregation_strategy", "grouped_entities")
            strategy = AggregationStrategy.SIMPLE if is_grouped else AggregationStrategy.NONE
        return {"aggregation_strategy": strategy, **options}


class FillMaskRequest(EncoderRequest, kw_only=True):
    """The body for fill-mask: texts with mask tokens."""

    inputs: str | list[str]
    parameters: FillMaskParameters | None = None

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        return {"top_k": runner.default_options.answer.top_k or _TOP_TOKENS, **super().read_options(runner, limits)}


class QuestionAnsweringRequest(EncoderRequest, kw_only=True):
    """The body for question answering."""

    inputs: Question | list[Question]
    parameters: QuestionAnsweringParameters | None = None

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        options = super().read_options(runner, limits)
        options.pop("max_question_len", None)
        if options.pop("max_seq_len", runner.max_length) != runner.max_length:
            raise InputError(
                f"max_seq_len can only be {runner.max_length} here: --max_length of the server sets it", "max_seq_len"
            )
        return {"top_k": runner.default_options.answer.top_k or 1, **options}


class ZeroShotClassificationRequest(EncoderRequest, kw_only=True):
    """The body for zero-shot classification."""

    inputs: str | list[str]
    parameters: ZeroShotClassificationParameters | None = None

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        options = super().read_options(runner, limits)
        if not (options.get("candidate_labels") or runner.default_options.answer.candidate_labels):
            raise InputError("parameters has no candidate_labels, which zero-shot-classification needs", "parameters")
        return options


class FeatureExtractionRequest(EncoderRequest, kw_only=True):
    """The body for feature extraction: texts, or token ids."""

    inputs: Inputs
    parameters: FeatureExtractionParameters | None = None

    def read_texts(self, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
        return read_text_inputs(self.inputs, "inputs", limits)

    def read_options(self, runner: Runner, limits: RequestLimits) -> dict[str, Any]:
        options = {
            "normalize": runner.default_options.answer.normalize is not False,
            **super().read_options(runner, limits),
        }
        if "truncation_side" in options:
            options["truncation_side"] = options["truncation_side"].lower()
        return options


class SentenceSimilarityRequest(EncoderRequest, kw_only=True):
    """The body for sentence similarity."""

    inputs: Comparison
    parameters: SentenceSimilarityParameters | None = None

    def read_texts(self, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
        return read_text_inputs([self.inputs.source_sentence, *self.inputs.sentences], "inputs", limits)
