"""Token classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification

from runners.core.answer_options import AggregationStrategy, AnswerOptions
from runners.core.errors import InputError
from runners.core.predictions import (
    MAIN,
    OFFSETS,
    AnswerForm,
    ClassScores,
    ElementType,
    Numbers,
    Options,
    OutputSpec,
    Records,
)
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.tasks.encoder_task import PROBABILITY_DECIMALS, TRUNCATION, ClassificationTask
from runners.encoder.tasks.entities import EntityFinder

# What `transformers.TokenClassificationPipeline` ignores by default.
_NO_ENTITY = ("O",)
_VALUES_PER_RECORD = 5
_OFFSETS = OutputSpec(OFFSETS, np.int64, (-1, -1, 2))


class TokenClassification(ClassificationTask):
    """Classifies every token of a text, special tokens included, as KServe does: [1, tokens] per text."""

    auto_class = AutoModelForTokenClassification
    accepts_words = True
    returns_offsets = True
    answer_options = frozenset({"labels", "aggregation_strategy", "ignore_labels"})
    overflow_options = TRUNCATION | {"stride"}

    def prepare(self) -> None:
        self._finder = EntityFinder([self.class_name(index) for index in range(self.classes)])

    def needs_token_spans(self, options: Options) -> bool:
        return options.answer.asks_for_records

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """The scores of every token, from the window with the most context around it: float32 [tokens, classes]."""
        return np.concatenate([part[kept] for part, kept in zip(parts, encoded.kept_tokens, strict=True)])

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        super().check(encoded, answer_options)
        text = encoded.text
        if answer_options.asks_for_records and text.token_spans is None:
            raise InputError(
                "labels, aggregation_strategy and ignore_labels need a text, but the request has token ids"
            )

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """`label`, `score`, `text`, `start` and `end` of every token, word or entity: [records]."""
        spans = encoded.text.token_spans
        if spans is None or not (answer_options.asks_for_records or spans.is_split):
            return None
        strategy = answer_options.aggregation_strategy or AggregationStrategy.NONE
        ignored = answer_options.ignore_labels
        if ignored is None:
            # A caller that splits the text into words gets a record for each word.
            ignored = () if spans.is_split and strategy is AggregationStrategy.NONE else _NO_ENTITY
        return self._finder.find(self.probabilities(scores), spans, strategy, ignored)

    def count_scores(self, text: TokenizedText) -> int:
        return len(text.input_ids) * self.classes

    def count_records(self, text: TokenizedText, options: Options) -> int:
        return len(text.input_ids) * _VALUES_PER_RECORD if self.needs_token_spans(options) else 0

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | ClassScores:
        match options.form:
            case AnswerForm.LABELS:
                return Numbers(scores.argmax(axis=-1)[None])
            case AnswerForm.PROBABILITIES:
                return ClassScores(self.probabilities(scores), PROBABILITY_DECIMALS)
            case AnswerForm.RAW_LOGITS:
                return ClassScores(scores, None)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (-1, -1)

    def outputs(self, options: Options) -> list[OutputSpec]:
        offsets = [_OFFSETS] if OFFSETS in options.outputs else []
        if options.answer.asks_for_records:
            columns: dict[str, ElementType] = {
                "label": str,
                "score": np.float32,
                "text": str,
                "start": np.int64,
                "end": np.int64,
            }
            return [*(OutputSpec(name, dtype, (-1, -1)) for name, dtype in columns.items()), *offsets]
        if options.form is AnswerForm.LABELS:
            return [OutputSpec(MAIN, np.int64, (-1, 1, -1)), *offsets]
        return [OutputSpec(MAIN, np.float32, (-1, -1, self.classes), ClassScores), *offsets]

    def named_outputs(self) -> list[OutputSpec]:
        return [*super().named_outputs(), _OFFSETS]
