"""The bodies of the Hugging Face inference protocol for tasks of encoders: inputs, and parameters by task.

Names and meanings are those of the hub's JSON schemas and of the pipelines of `transformers`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from protocol.text_inputs import Inputs, read_text_inputs
from runners.core.answer_options import AggregationStrategy, AnswerOptions
from runners.core.errors import InputError
from runners.core.number_types import NonNegativeInt, PositiveInt
from runners.core.predictions import TextInput, TokenInput
from runners.core.request_limits import RequestLimits

# The pipeline's default.
_TOP_TOKENS = 5
# The other protocols' names of parameters.
_OPTION_NAMES = {"doc_stride": "stride", "truncate": "truncation", "truncation_direction": "truncation_side"}

Names = str | list[str]
# Pipelines pass it to the tokenizer.
Truncation = bool | Literal["do_not_truncate", "longest_first", "only_first", "only_second"]


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
    """`top_k` is the number of best classes; all by default."""

    top_k: PositiveInt | None = None
    function_to_apply: Literal["softmax", "sigmoid", "none"] | None = None
    truncation: Truncation | None = None


class TokenClassificationParameters(msgspec.Struct):
    """`aggregation_strategy` merges tokens into entities; `simple` by default, as in the hosted service."""

    aggregation_strategy: AggregationStrategy | None = None
    ignore_labels: Names | None = None
    stride: NonNegativeInt | None = None


class FillMaskParameters(msgspec.Struct):
    """`top_k` is the number of best tokens for each mask, 5 by default; `targets` are the only ones that are scored."""

    top_k: PositiveInt | None = None
    targets: Names | None = None
    truncation: Truncation | None = None


class QuestionAnsweringParameters(msgspec.Struct):
    """`doc_stride` is the number of tokens that the windows of a long context share."""

    top_k: PositiveInt | None = None
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

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        """The options of the answer, under the names of the other protocols' `parameters`.

        Args:
            defaults: the operator's, which win over those of the protocol.
        """
        parameters = {} if self.parameters is None else msgspec.structs.asdict(self.parameters)
        options = {_OPTION_NAMES.get(name, name): value for name, value in parameters.items() if value is not None}
        if "truncation" in options:
            options["truncation"] = truncates(options["truncation"])
        return options


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

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        default = defaults.top_k or self.default_top_k or limits.max_top_k
        return {"top_k": default, **super().read_options(defaults, limits)}


class TokenClassificationRequest(EncoderRequest, kw_only=True):
    """The body for token classification."""

    default_strategy: ClassVar[AggregationStrategy] = AggregationStrategy.SIMPLE
    inputs: str | list[str]
    parameters: TokenClassificationParameters | None = None

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        strategy = defaults.aggregation_strategy or self.default_strategy
        return {"aggregation_strategy": strategy, **super().read_options(defaults, limits)}


class FillMaskRequest(EncoderRequest, kw_only=True):
    """The body for fill-mask: texts with mask tokens."""

    inputs: str | list[str]
    parameters: FillMaskParameters | None = None

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        return {"top_k": defaults.top_k or _TOP_TOKENS, **super().read_options(defaults, limits)}


class QuestionAnsweringRequest(EncoderRequest, kw_only=True):
    """The body for question answering."""

    inputs: Question | list[Question]
    parameters: QuestionAnsweringParameters | None = None

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        return {"top_k": defaults.top_k or 1, **super().read_options(defaults, limits)}


class ZeroShotClassificationRequest(EncoderRequest, kw_only=True):
    """The body for zero-shot classification."""

    inputs: str | list[str]
    parameters: ZeroShotClassificationParameters | None = None

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        options = super().read_options(defaults, limits)
        if not (options.get("candidate_labels") or defaults.candidate_labels):
            raise InputError("parameters has no candidate_labels, which zero-shot-classification needs", "parameters")
        return options


class FeatureExtractionRequest(EncoderRequest, kw_only=True):
    """The body for feature extraction: texts, or token ids."""

    inputs: Inputs
    parameters: FeatureExtractionParameters | None = None

    def read_texts(self, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
        return read_text_inputs(self.inputs, "inputs", limits)

    def read_options(self, defaults: AnswerOptions, limits: RequestLimits) -> dict[str, Any]:
        options = {"normalize": defaults.normalize is not False, **super().read_options(defaults, limits)}
        if "truncation_side" in options:
            options["truncation_side"] = options["truncation_side"].lower()
        return options


class SentenceSimilarityRequest(EncoderRequest, kw_only=True):
    """The body for sentence similarity."""

    inputs: Comparison
    parameters: SentenceSimilarityParameters | None = None

    def read_texts(self, limits: RequestLimits) -> Sequence[TextInput | TokenInput]:
        return read_text_inputs([self.inputs.source_sentence, *self.inputs.sentences], "inputs", limits)
