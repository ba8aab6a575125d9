"""Class scores in KServe's printed form: a map for each row, keyed by class id."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from runners.core.predictions import ClassScores, VocabularyScores

# The numbers that one call converts to Python's; the call takes some ms and stops other threads.
_AT_ONCE = 2**14


def class_rows(scores: ClassScores) -> Iterator[list[float]]:
    """A list of Python floats for each row of scores; probabilities are rounded.

    The numbers are converted to float64, as KServe's are, so that they print with the same digits.
    """
    values = np.atleast_2d(scores.values)
    rows = max(1, _AT_ONCE // values.shape[1])
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.float64)
        # `yield from` would let no other thread run.
        for row in (part if scores.decimals is None else part.round(scores.decimals)).tolist():  # noqa: UP028
            yield row


@lru_cache(maxsize=4)
def class_keys(classes: int) -> tuple[str, ...]:
    """The class ids as JSON keys."""
    return tuple(map(str, range(classes)))


def vocabulary_entries(
    scores: VocabularyScores, opening: str, closing: str, quote: str
) -> Iterator[Iterator[list[str]]]:
    """A string for each vocabulary entry of each mask, `<opening>ID<closing>SCORE}`; probabilities are quoted.

    A vocabulary has tens of thousands of entries, so no Python statement runs for each: a list has some thousands.
    """
    for row in scores.values:
        yield _entries(row, scores.decimals, opening, closing, quote)


def _entries(
    row: NDArray[np.float32], decimals: int | None, opening: str, closing: str, quote: str
) -> Iterator[list[str]]:
    prefixes = _prefixes(len(row), opening, closing)
    for start in range(0, len(row), _AT_ONCE):
        heads, part = prefixes[start : start + _AT_ONCE], row[start : start + _AT_ONCE].astype(np.float64)
        if decimals is None:
            yield list(map("".join, zip(heads, map(repr, part.tolist()), repeat("}"))))
        else:
            steps = np.rint(part * 10**decimals).astype(np.int64)
            yield list(map("".join, zip(heads, _printed_fractions(decimals, quote)[steps], strict=True)))


@lru_cache(maxsize=4)
def _prefixes(classes: int, opening: str, closing: str) -> tuple[str, ...]:
    return tuple(f"{opening}{index}{closing}" for index in range(classes))


@lru_cache(maxsize=4)
def _printed_fractions(decimals: int, quote: str) -> NDArray[np.object_]:
    """The fractions from 0 to 1 in steps of 10**-decimals, printed, each with a closing brace: [10**decimals + 1]."""
    return np.array([f"{quote}{step / 10**decimals:.{decimals}f}{quote}}}" for step in range(10**decimals + 1)], object)
