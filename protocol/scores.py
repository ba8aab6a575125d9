"""Class scores in the form KServe prints them: one map a row, keyed by class id."""

from __future__ import annotations

from functools import lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from runners.inference import ClassScores, VocabularyScores


def class_rows(scores: ClassScores) -> list[list[float]]:
    """One list of Python floats a row of scores, rounded if they are probabilities; one row where it is a text's.

    They go through float64, as KServe's do: the same number prints with the same digits.
    """
    values = np.atleast_2d(scores.values).astype(np.float64)
    rows: list[list[float]] = (values if scores.decimals is None else values.round(scores.decimals)).tolist()
    return rows


@lru_cache(maxsize=4)
def class_keys(classes: int) -> tuple[str, ...]:
    """The class ids as JSON keys."""
    return tuple(map(str, range(classes)))


def vocabulary_entries(scores: VocabularyScores, opening: str, closing: str, quote: str) -> list[list[str]]:
    """One string a vocabulary entry and mask, `<opening>ID<closing>SCORE}`; probabilities are quoted strings.

    No Python statement runs per entry: a vocabulary has tens of thousands.
    """
    return [_entries(row, scores.decimals, opening, closing, quote) for row in scores.values]


def _entries(row: NDArray[np.float32], decimals: int | None, opening: str, closing: str, quote: str) -> list[str]:
    prefixes = _prefixes(len(row), opening, closing)
    if decimals is None:
        return list(map("".join, zip(prefixes, map(repr, row.astype(np.float64).tolist()), repeat("}"))))
    printed = _printed_fractions(decimals, quote)
    steps = np.rint(row.astype(np.float64) * 10**decimals).astype(np.int64)
    return list(map("".join, zip(prefixes, printed[steps], strict=True)))


@lru_cache(maxsize=4)
def _prefixes(classes: int, opening: str, closing: str) -> tuple[str, ...]:
    return tuple(f"{opening}{index}{closing}" for index in range(classes))


@lru_cache(maxsize=4)
def _printed_fractions(decimals: int, quote: str) -> NDArray[np.object_]:
    """All fractions from 0 to 1 with so many decimals, printed and closed."""
    return np.array([f"{quote}{step / 10**decimals:.{decimals}f}{quote}}}" for step in range(10**decimals + 1)], object)
