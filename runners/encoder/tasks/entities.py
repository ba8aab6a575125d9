"""Entities of token classification, by the rules of `transformers.TokenClassificationPipeline`.

Which tokens continue a word depends on the text alone, and is found when the text is tokenized. Grouping by scores runs
in the device thread, so it is vectorized over the tokens of a text.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runners.core.answer_options import AggregationStrategy
from runners.core.predictions import Records
from runners.encoder.sequences import TokenSpans

_BY_WORD = (AggregationStrategy.FIRST, AggregationStrategy.AVERAGE, AggregationStrategy.MAX)


class EntityFinder:
    """Groups tokens to entities by the names of a model's classes, such as O, B-PER and I-PER."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = np.array(names, dtype=object)
        self._begins = np.array([name.startswith("B-") for name in names])
        tags = [name[2:] if name.startswith(("B-", "I-")) else name for name in names]
        # Neighbouring tokens of one tag are one entity, unless a B- begins another.
        self._tags = np.array([tags.index(tag) for tag in tags])
        # As in the pipeline, any prefix is removed.
        self._entity_names = np.array([name.split("-", 1)[-1] for name in names], dtype=object)

    def find(
        self,
        scores: NDArray[np.float32],
        token_spans: TokenSpans,
        strategy: AggregationStrategy,
        ignored: Collection[str],
    ) -> Records:
        """Find the entities of a text.

        Args:
            scores: float32 [tokens, classes].
            ignored: names without a record: of classes for the strategy `none`, else of entities.

        Returns:
            `label`, `score`, `text`, `start` and `end`, [records] each: one record per entity. For the strategy `none`
            one record per token, or per word if the caller has split the text into words.
        """
        tokens = np.flatnonzero(~token_spans.special)
        scores, spans = scores[tokens], token_spans.spans[tokens]
        if strategy in _BY_WORD or (token_spans.is_split and strategy is AggregationStrategy.NONE):
            words = _Runs.between(~token_spans.continues[tokens])
            classes, values = _decide(scores, words, strategy)
            spans = words.merge(spans)
        else:
            classes, values = scores.argmax(axis=-1), scores.max(axis=-1)
        names = self._names
        if strategy is not AggregationStrategy.NONE:
            tags = self._tags[classes]
            changes = np.ones(len(tags), dtype=bool)
            changes[1:] = tags[1:] != tags[:-1]
            entities = _Runs.between(changes | self._begins[classes])
            classes, values, spans = classes[entities.starts], entities.average(values), entities.merge(spans)
            names = self._entity_names
        labels = names[classes]
        positions = np.flatnonzero(np.array([name not in ignored for name in names.tolist()], dtype=bool)[classes])
        spans = spans[positions]
        texts = [token_spans.cut(start, end) for start, end in spans.tolist()]
        return Records(
            {
                "label": labels[positions],
                "score": values[positions],
                "text": np.array(texts, dtype=object),
                "start": spans[:, 0],
                "end": spans[:, 1],
            }
        )


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs of neighbouring elements that belong together.

    Attributes:
        starts: int64 [runs], position of each run's first element.
        ends: int64 [runs], position after its last element.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]

    @classmethod
    def between(cls, begins: NDArray[np.bool_]) -> _Runs:
        """Runs that begin at the marked elements; the first element always begins a run.

        Args:
            begins: bool [elements].
        """
        begins[:1] = True
        starts = np.flatnonzero(begins)
        # np.append and np.diff are several times slower.
        ends = np.empty_like(starts)
        ends[:-1] = starts[1:]
        ends[-1:] = len(begins)
        return cls(starts, ends)

    def merge(self, spans: NDArray[np.int64]) -> NDArray[np.int64]:
        """The span of each run, int64 [runs, 2], from the spans of its elements, int64 [elements, 2]."""
        merged = np.empty((len(self.starts), 2), dtype=np.int64)
        merged[:, 0] = spans[self.starts, 0]
        merged[:, 1] = spans[self.ends - 1, 1]
        return merged

    def average(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The mean of each run, float32 [runs, ...], of [elements, ...]."""
        lengths = (self.ends - self.starts).astype(np.float32)
        sums: NDArray[np.float32] = np.add.reduceat(values, self.starts, axis=0)
        return (sums.T / lengths).T

    def find_highest(self, values: NDArray[np.float32]) -> NDArray[np.int64]:
        """Position of the first highest value in each run: int64 [runs]."""
        highest = values == np.repeat(np.maximum.reduceat(values, self.starts), self.ends - self.starts)
        places = np.flatnonzero(highest)
        return places[np.searchsorted(places, self.starts)]


def _decide(
    scores: NDArray[np.float32], words: _Runs, strategy: AggregationStrategy
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The class of each word, int64 [words], and its score, float32 [words]."""
    match strategy:
        case AggregationStrategy.AVERAGE:
            scores = words.average(scores)
        case AggregationStrategy.MAX:
            scores = scores[words.find_highest(scores.max(axis=-1))]
        case _:
            scores = scores[words.starts]
    return scores.argmax(axis=-1), scores.max(axis=-1)
