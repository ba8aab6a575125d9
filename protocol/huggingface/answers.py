"""The answers of encoders in the forms of the hub's JSON schemas, with the names of the pipelines of `transformers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from protocol.huggingface.requests import (
    EncoderRequest,
    FeatureExtractionParameters,
    FeatureExtractionRequest,
    FillMaskParameters,
    FillMaskRequest,
    QuestionAnsweringParameters,
    QuestionAnsweringRequest,
    SentenceSimilarityParameters,
    SentenceSimilarityRequest,
    TextClassificationParameters,
    TextClassificationRequest,
    TokenClassificationParameters,
    TokenClassificationRequest,
    ZeroShotClassificationParameters,
    ZeroShotClassificationRequest,
)
from protocol.huggingface.tasks import HubTask
from protocol.records import list_records
from protocol.vectors import compare_vectors, stack_vectors
from runners.core.answer_options import AggregationStrategy
from runners.core.predictions import Options, Prediction, Records

# Makes the answer to one text.
Describe = Callable[[Prediction, Options], Any]
# Makes the body of an answer, as JSON or iterators, from the request's, the options and the predictions.
RenderAnswer = Callable[[Any, Options, Sequence[Prediction]], Any]


@dataclass(frozen=True, slots=True)
class EncoderForm:
    """The form of the bodies and answers of a task of encoders.

    Attributes:
        request: the type of the body.
        parameters: the type of its parameters.
        render: makes the answer.
    """

    request: type[EncoderRequest]
    parameters: type[msgspec.Struct]
    render: RenderAnswer


def _for_each(describe: Describe, is_list: bool = False) -> RenderAnswer:
    """An answer for each text.

    Args:
        is_list: whether the answer to a single text is in a list too.
    """

    def render(call: EncoderRequest, options: Options, predictions: Sequence[Prediction]) -> Any:
        answers = (describe(prediction, options) for prediction in predictions)
        return answers if is_list or call.is_batch else next(answers)

    return render


def _list_classes(prediction: Prediction, _: Options) -> Any:
    return list_records(prediction.records)


def _list_entities(prediction: Prediction, options: Options) -> Any:
    is_token = options.answer.aggregation_strategy is AggregationStrategy.NONE
    names = {"label": "entity" if is_token else "entity_group", "text": "word"}
    return list_records(prediction.records, names)


def _list_tokens(prediction: Prediction, _: Options) -> Any:
    """The best tokens; of a text with several masks, a list for each of them."""
    columns = prediction.records.columns
    if len(columns["token"]) == 1:
        columns = {name: column[0] for name, column in columns.items()}
    return list_records(Records(columns))


def _list_answers(prediction: Prediction, options: Options) -> Any:
    """The best answer, or a list of several."""
    answers = list_records(prediction.records)
    return next(answers) if options.answer.top_k == 1 else answers


def _list_vectors(_: EncoderRequest, __: Options, predictions: Sequence[Prediction]) -> Any:
    return stack_vectors(predictions)


def _list_similarities(_: EncoderRequest, __: Options, predictions: Sequence[Prediction]) -> Any:
    """The cosines of the first vector and the others."""
    return compare_vectors(predictions)


ENCODER_FORMS: Mapping[HubTask, EncoderForm] = {
    HubTask.FEATURE_EXTRACTION: EncoderForm(FeatureExtractionRequest, FeatureExtractionParameters, _list_vectors),
    HubTask.FILL_MASK: EncoderForm(FillMaskRequest, FillMaskParameters, _for_each(_list_tokens)),
    HubTask.QUESTION_ANSWERING: EncoderForm(
        QuestionAnsweringRequest, QuestionAnsweringParameters, _for_each(_list_answers)
    ),
    HubTask.SENTENCE_SIMILARITY: EncoderForm(
        SentenceSimilarityRequest, SentenceSimilarityParameters, _list_similarities
    ),
    HubTask.TEXT_CLASSIFICATION: EncoderForm(
        TextClassificationRequest, TextClassificationParameters, _for_each(_list_classes, is_list=True)
    ),
    HubTask.TOKEN_CLASSIFICATION: EncoderForm(
        TokenClassificationRequest, TokenClassificationParameters, _for_each(_list_entities)
    ),
    HubTask.ZERO_SHOT_CLASSIFICATION: EncoderForm(
        ZeroShotClassificationRequest, ZeroShotClassificationParameters, _for_each(_list_classes)
    ),
}
