"""Sequence classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForSequenceClassification

from runners.core.answer_options import AnswerOptions, ScoreFunction, WindowAggregation
from runners.core.predictions import LABELS, MAIN, AnswerForm, ClassScores, Numbers, Options, OutputSpec, Records
from runners.encoder.forward import TokenSelection
from runners.encoder.sequences import EncodedText
from runners.encoder.tasks.encoder_task import PROBABILITY_DECIMALS, TRUNCATION, ClassificationTask
from runners.encoder.tasks.probabilities import sigmoid, softmax
from runners.encoder.transformer_settings import CROSS_ENCODER

# A label of a multi-label model applies from this score on.
_APPLIES = 0.5


class SequenceClassification(ClassificationTask):
    """Classifies a text or a pair: single-label, multi-label or regression.

    Probabilities are those of `transformers.TextClassificationPipeline`: softmax for single-label models, sigmoid for
    multi-label models and for a single class, the value itself for regression.
    """

    auto_class = AutoModelForSequenceClassification
    accepts_pairs = True
    selection = TokenSelection.FIRST
    sentence_transformer = CROSS_ENCODER
    answer_options = frozenset({"labels", "top_k", "threshold", "function_to_apply"})
    overflow_options = TRUNCATION | {"stride", "window_aggregation"}

    def prepare(self) -> None:
        problem: str | None = getattr(self.config, "problem_type", None)
        self._multi_label = problem == "multi_label_classification"
        # A model with one class and no problem type was trained as a regression.
        self._regression = problem == "regression" or (self.classes == 1 and not self._multi_label)
        self._raw_scores = problem == "regression"

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """The mean or maximum of the windows' logits, by class: float32 [1, classes]."""
        windows = np.stack(parts)
        mean = options.overflow.window_aggregation is WindowAggregation.MEAN
        return np.asarray(windows.mean(axis=0) if mean else windows.max(axis=0))

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | ClassScores:
        [scores] = scores
        if options.form is AnswerForm.RAW_LOGITS:
            return ClassScores(scores, None)
        if options.form is AnswerForm.PROBABILITIES:
            return ClassScores(self.probabilities(scores), PROBABILITY_DECIMALS)
        if self._regression:
            return Numbers(scores.reshape(()) if self.classes == 1 else scores)
        if self._multi_label:
            return Numbers(self._applies(scores).astype(np.int64))
        return Numbers(np.asarray(scores.argmax()))

    def named_output(self, name: str, scores: NDArray[np.float32]) -> NDArray[Any]:
        """As in `ClassificationTask`; for a multi-label model, `labels` is empty where a label does not apply."""
        [scores] = scores
        if name == "labels" and self._multi_label:
            return np.where(self._applies(scores), self._names(np.arange(self.classes)), "")
        return np.asarray(super().named_output(name, scores))

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._raw_scores:
            return logits
        return sigmoid(logits) if self._multi_label or self.classes == 1 else softmax(logits)

    def _applies(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return sigmoid(logits) > _APPLIES

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """`label` and `score` of the best class; a list of these for `top_k`, `threshold` or a multi-label model."""
        if not answer_options.asks_for_records:
            return None
        [logits] = scores
        values = self._apply(answer_options.function_to_apply, logits)
        if self._lists(answer_options):
            least = (
                _APPLIES
                if answer_options.threshold is None and answer_options.top_k is None
                else answer_options.threshold
            )
            best = pick_best(values, answer_options.top_k, least)
        else:
            [best] = pick_best(values, 1, None)
        return Records({"label": self._names(best), "score": values[best]})

    def _apply(self, function: ScoreFunction | None, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        match function:
            case ScoreFunction.SOFTMAX:
                return softmax(logits)
            case ScoreFunction.SIGMOID:
                return sigmoid(logits)
            case ScoreFunction.NONE:
                return logits
            case None:
                return self.probabilities(logits)

    def _lists(self, answer_options: AnswerOptions) -> bool:
        return self._multi_label or answer_options.top_k is not None or answer_options.threshold is not None

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (-1,)

    def named_outputs(self) -> list[OutputSpec]:
        *scores, labels = super().named_outputs()
        if self._regression:
            return scores
        return [*scores, OutputSpec(LABELS, str, (-1, self.classes)) if self._multi_label else labels]

    def outputs(self, options: Options) -> list[OutputSpec]:
        if options.answer.asks_for_records:
            records = (-1, -1) if self._lists(options.answer) else (-1,)
            return [OutputSpec("label", str, records), OutputSpec("score", np.float32, records)]
        if options.form is not AnswerForm.LABELS:
            return [OutputSpec(MAIN, np.float32, (-1, self.classes), ClassScores)]
        shape = (-1, self.classes) if self._multi_label or (self._regression and self.classes > 1) else (-1,)
        return [OutputSpec(MAIN, np.float32 if self._regression else np.int64, shape)]


def pick_best(values: NDArray[np.float32], top_k: int | None, least: float | None) -> NDArray[np.int64]:
    """Positions of the highest values, highest first: int64 [at most top_k]; without values below `least`."""
    best = np.argsort(-values, kind="stable")[:top_k]
    return best if least is None else best[values[best] >= least]
