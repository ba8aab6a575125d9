"""Comparisons in pairs: both sides are measured in turn, and every pair has a ratio of its own.

What else runs on the machine, and how warm it is, changes from minute to minute; it hurts both sides of a pair alike.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median, stdev
from typing import Any, TypeVar

Side = TypeVar("Side", bound=Hashable)
Measured = TypeVar("Measured")
# The 0.975 quantiles of Student's t distribution with 1 to 10 degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


@dataclass(frozen=True)
class Ratio:
    """One side to the other, pair by pair."""

    pairs: tuple[float, ...]

    @classmethod
    def of(cls, above: Sequence[float], below: Sequence[float]) -> Ratio:
        """Of measurements in the order in which they were made, one of each side a pair."""
        return cls(tuple(one / other for one, other in zip(above, below, strict=True)))

    @property
    def median(self) -> float:
        return median(self.pairs)

    @property
    def mean(self) -> float:
        return fmean(self.pairs)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of the mean, by Student's t distribution; None for a single pair."""
        freedom = len(self.pairs) - 1
        if not freedom:
            return None
        # Beyond the table, its expansion about the normal distribution.
        quantile = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1.960 + 2.372 / freedom + 2.82 / freedom**2
        half = quantile * stdev(self.pairs) / sqrt(len(self.pairs))
        return self.mean - half, self.mean + half

    def __str__(self) -> str:
        """The median and, with several pairs, their range."""
        spread = f" ({min(self.pairs):.2f}-{max(self.pairs):.2f})" if len(self.pairs) > 1 else ""
        return f"{self.median:.2f}{spread}"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {"median": self.median, "mean": self.mean, "interval": self.interval, "pairs": self.pairs}


def take_turns(sides: Mapping[Side, Callable[[], Measured]], rounds: int) -> dict[Side, list[Measured]]:
    """Measure all sides in every round, in turn from the first and from the last: A B, B A, A B and so on.

    The first of a round finds the machine as the round before has left it, so that no side is always first.
    """
    measured: dict[Side, list[Measured]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name in sorted(sides, key=[*sides].index, reverse=turn % 2 == 1):
            measured[name].append(sides[name]())
    return measured
