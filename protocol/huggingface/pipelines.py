"""The answers of encoders in the forms of the pipelines of `transformers`, which Hugging Face's containers pass on.

The containers for SageMaker and Vertex AI call the pipeline of the model's task with `inputs` and `parameters`. The
hub's JSON schemas have other forms, or other defaults, for three tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from protocol.huggingface.answers import ENCODER_FORMS, EncoderForm
from protocol.huggingface.requests import (
    TextClassificationParameters,
    TextClassificationRequest,
    TokenClassificationParameters,
    TokenClassificationRequest,
    ZeroShotClassificationParameters,
    ZeroShotClassificationRequest,
)
from protocol.huggingface.tasks import HubTask
from protocol.records import list_records
from runners.core.answer_options import AggregationStrategy
from runners.core.predictions import Options, Prediction


class TextPipelineRequest(TextClassificationRequest, kw_only=True):
    """The body for text classification; the best class by default."""

    default_top_k: ClassVar[int | None] = 1


class TokenPipelineRequest(TokenClassificationRequest, kw_only=True):
    """The body for token classification; tokens by default."""

    default_strategy: ClassVar[AggregationStrategy] = AggregationStrategy.NONE


def _list_classes(call: TextPipelineRequest, options: Options, predictions: Sequence[Prediction]) -> Any:
    """The classes of a text; of several texts the best one each, or a list each if the request says how many."""
    classes = [list_records(prediction.records) for prediction in predictions]
    if not call.is_batch:
        return classes[0]
    is_counted = call.parameters is not None and call.parameters.top_k is not None
    return classes if is_counted or options.answer.top_k != 1 else [next(each) for each in classes]


def _list_all_classes(_: TextPipelineRequest, __: Options, predictions: Sequence[Prediction]) -> Any:
    """The classes of each text."""
    return (list_records(prediction.records) for prediction in predictions)


def _list_labels(call: ZeroShotClassificationRequest, _: Options, predictions: Sequence[Prediction]) -> Any:
    """The labels of each text, best first, beside their scores."""
    texts = call.inputs if isinstance(call.inputs, list) else [call.inputs]
    answers = (
        {"sequence": text, "labels": columns["label"].tolist(), "scores": columns["score"].tolist()}
        for text, columns in zip(texts, (prediction.records.columns for prediction in predictions), strict=True)
    )
    return answers if call.is_batch else next(answers)


PIPELINE_FORMS: Mapping[HubTask, EncoderForm] = {
    **ENCODER_FORMS,
    HubTask.TEXT_CLASSIFICATION: EncoderForm(TextPipelineRequest, TextClassificationParameters, _list_classes),
    HubTask.TOKEN_CLASSIFICATION: EncoderForm(
        TokenPipelineRequest, TokenClassificationParameters, ENCODER_FORMS[HubTask.TOKEN_CLASSIFICATION].render
    ),
    HubTask.ZERO_SHOT_CLASSIFICATION: EncoderForm(
        ZeroShotClassificationRequest, ZeroShotClassificationParameters, _list_labels
    ),
}
# As if each item of a batch were an input of its own, and the batch a list of the answers.
INSTANCE_FORMS: Mapping[HubTask, EncoderForm] = {
    **PIPELINE_FORMS,
    HubTask.TEXT_CLASSIFICATION: EncoderForm(TextPipelineRequest, TextClassificationParameters, _list_all_classes),
}
