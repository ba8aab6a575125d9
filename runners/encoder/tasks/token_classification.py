"""Token classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from transformers import AutoModelForTokenClassification

from runners.core.answer_options import AggregationStrategy, AnswerOptions
from runners.core.errors import InputError
from runners.core.predictions import ClassScores, Numbers, Options, Output, Records, TensorSpec
from runners.encoder.sequences import EncodedText, TokenizedText
from runners.encoder.tasks.encoder_task import PROBABILITY_DECIMALS, TRUNCATION, ClassificationTask
from runners.encoder.tasks.entities import EntityFinder

# What `transformers.TokenClassificationPipeline` ignores by default.
_NO_ENTITY = ("O",)
_VALUES_PER_RECORD = 5
_OFFSETS = TensorSpec("offset_mapping", "INT64", (-1, -1, 2))


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
        return options.answer.records

    def merge_windows(
        self, parts: Sequence[NDArray[np.float32]], encoded: EncodedText, options: Options
    ) -> NDArray[np.float32]:
        """The scores of every token, from the window with the most context around it: float32 [tokens, classes]."""
        return np.concatenate([part[kept] for part, kept in zip(parts, encoded.kept_tokens, strict=True)])

    def check(self, encoded: EncodedText, answer_options: AnswerOptions) -> None:
        super().check(encoded, answer_options)
        text = encoded.text
        if answer_options.records and text.token_spans is None:
            raise InputError(
                "it is given as tokens, and what labels, aggregation_strategy and ignore_labels ask for is of texts"
            )

    def to_records(
        self, scores: NDArray[np.float32], encoded: EncodedText, answer_options: AnswerOptions
    ) -> Records | None:
        """`label`, `score`, `text`, `start` and `end` of every token, word or entity: [records]."""
        spans = encoded.text.token_spans
        if spans is None or not (answer_options.records or spans.split):
            return None
        strategy = answer_options.aggregation_strategy or AggregationStrategy.NONE
        ignored = answer_options.ignore_labels
        if ignored is None:
            # A caller that splits the text into words gets a record for each word.
            ignored = () if spans.split and strategy is AggregationStrategy.NONE else _NO_ENTITY
        return self._finder.find(self.probabilities(scores), spans, strategy, ignored)

    def count_scores(self, text: TokenizedText) -> int:
        return len(text.input_ids) * self.classes

    def count_records(self, text: TokenizedText, options: Options) -> int:
        return len(text.input_ids) * _VALUES_PER_RECORD if self.needs_token_spans(options) else 0

    def output(self, scores: NDArray[np.float32], options: Options) -> Numbers | ClassScores:
        match options.output:
            case Output.LABELS:
                return Numbers(scores.argmax(axis=-1)[None])
            case Output.PROBABILITIES:
                return ClassScores(self.probabilities(scores), PROBABILITY_DECIMALS)
            case Output.RAW_LOGITS:
                return ClassScores(scores, None)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        return (-1, -1)

    def outputs(self, options: Options) -> list[TensorSpec]:
        offsets = [_OFFSETS] if options.offsets else []
        if options.answer.records:
            columns = {"label": "BYTES", "score": "FP32", "text": "BYTES", "start": "INT64", "end": "INT64"}
            return [*(TensorSpec(name, datatype, (-1, -1)) for name, datatype in columns.items()), *offsets]
        labels = options.output is Output.LABELS
        datatype, shape = ("INT64", (-1, 1, -1)) if labels else ("BYTES", (-1, -1))
        return [TensorSpec("output-0", datatype, shape), *offsets]

    def named_outputs(self) -> list[TensorSpec]:
        return [*super().named_outputs(), _OFFSETS]
