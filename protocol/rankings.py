"""Scores of pairs of texts, and their order, for the protocols that rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from runners.core.predictions import Prediction


def read_scores(predictions: Sequence[Prediction], output: str | None = None) -> list[float]:
    """The score of each pair.

    Args:
        output: the named output that has it; None for the records, which have one class.
    """
    if output is None:
        return [prediction.records.columns["score"].item() for prediction in predictions]
    return [prediction.arrays[output].item() for prediction in predictions]


def sort_by_score(scores: Sequence[float]) -> list[int]:
    """The positions of the scores, highest first; equal scores keep their order."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def list_ranked(
    scores: Sequence[float], texts: Sequence[str] | None = None, most: int | None = None
) -> Iterator[dict[str, Any]]:
    """An object for each score, best first, with its position, and with its text if there are texts.

    Args:
        most: how many objects there are at most; None for all.
    """
    for index in sort_by_score(scores)[:most]:
        yield {"index": index, "score": scores[index], **({} if texts is None else {"text": texts[index]})}
