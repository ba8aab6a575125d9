"""Entities of token classification, as `transformers.TokenClassificationPipeline` makes them of the tokens' scores.

Which tokens carry on a word is a matter of the text alone and is found where that is tokenized. What is left, grouping
by scores, runs in the model's thread, so that it is numpy over all tokens of a text at once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from runners.answers import AggregationStrategy
from runners.encoder.tokenization import Source
from runners.inference import Table

_BY_WORD = (AggregationStrategy.FIRST, AggregationStrategy.AVERAGE, AggregationStrategy.MAX)


class EntityFinder:
    """Finds the entities of texts by the names of a model's classes, such as O, B-PER and I-PER."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array(names, dtype=object)
        self._begins = np.array([name.startswith("B-") for name in names])
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        # Classes of one number go on with each other.
        self._tags = np.array([tags.index(tag) for tag in tags])
        # An entity's name has no prefix, whatever that is.
        self._entity_names = np.array([name.split("-", 1)[-1] for name in names], dtype=object)

    def find(
        self,
        scores: NDArray[np.float32],
        source: Source,
        strategy: AggregationStrategy,
        ignored: Collection[str],
    ) -> Table:
        """Columns of one row an entity, or for `none` one a token, or a word where the text was given as words.

        Args:
            scores: float32 [tokens, classes].
            ignored: names that get no row: of classes for `none`, else of entities.
        """
        tokens = np.flatnonzero(~source.special)
        scores, spans = scores[tokens], source.spans[tokens]
        if strategy in _BY_WORD or (source.split and strategy is AggregationStrategy.NONE):
            starts = _find_starts(~source.continues[tokens])
            classes, values = _decide(scores, starts, strategy)
            spans = _merge(spans, starts)
        else:
            classes, values = scores.argmax(axis=-1), scores.max(axis=-1)
        names = self._names
        if strategy is not AggregationStrategy.NONE:
            tags = self._tags[classes]
            changes = np.ones(len(tags), dtype=bool)
            changes[1:] = tags[1:] != tags[:-1]
            starts = _find_starts(changes | self._begins[classes])
            values = _average(values, starts)
            classes, spans, names = classes[starts], _merge(spans, starts), self._entity_names
        labels = names[classes]
        kept = [row for row, label in enumerate(labels.tolist()) if label not in ignored]
        spans = spans[kept]
        texts = [source.cut(start, end) for start, end in spans.tolist()]
        return Table(
            {
                "label": labels[kept],
                "score": values[kept],
                "text": np.array(texts, dtype=object),
                "start": spans[:, 0],
                "end": spans[:, 1],
            }
        )


def _find_starts(begins: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where runs start, int64 [runs]; nothing comes before the first element, so that it starts one."""
    begins[:1] = True
    return np.flatnonzero(begins)


def _merge(spans: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Int64 [runs, 2]: from where a run's first span starts to where its last one ends."""
    ends = starts + np.diff(starts, append=len(spans))
    return np.stack([spans[starts, 0], spans[ends - 1, 1]], axis=1)


def _average(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
    """Float32 [runs, ...] of [elements, ...]."""
    lengths = np.diff(starts, append=len(values)).astype(np.float32)
    sums: NDArray[np.float32] = np.add.reduceat(values, starts, axis=0)
    return (sums.T / lengths).T


def _decide(
    scores: NDArray[np.float32], starts: NDArray[np.int64], strategy: AggregationStrategy
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The class of each word, int64 [words], and its score, float32 [words]."""
    match strategy:
        case AggregationStrategy.AVERAGE:
            scores = _average(scores, starts)
        case AggregationStrategy.MAX:
            best = scores.max(axis=-1)
            lengths = np.diff(starts, append=len(scores))
            highest = best == np.repeat(np.maximum.reduceat(best, starts), lengths)
            # The first of those that are equal.
            scores = scores[np.minimum.reduceat(np.where(highest, np.arange(len(scores)), len(scores)), starts)]
        case _:
            scores = scores[starts]
    return scores.argmax(axis=-1), scores.max(axis=-1)
