"""What a run says: a leak, none, or too little to tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

# The share of the requests of a run in which pools fill, heaps grow to their size and caches get their contents.
WARM_UP_SHARE = 0.5
# Of the memory at the end of the warm-up, per million requests.
MOST_PERCENT_PER_MILLION = 1.0
_CONFIDENCE = 0.95
# A count's name, and by which share it may grow: a seldom error adds its own series to /metrics.
SERIES = "series of /metrics"
_MAY_GROW = {SERIES: 0.05}
# With fewer, nothing is decided.
_FEWEST_REST_PHASES = 8
_MILLION = 1e6
# Of the correlation of one rest phase with the next: above it, so few are left that a run decides nothing.
_MOST_CORRELATION = 0.9

Floats = npt.NDArray[np.float64]


class Outcome(Enum):
    """How the tool ends: its exit code."""

    PASSED = 0
    FAILED = 1
    INCONCLUSIVE = 2


@dataclass(frozen=True)
class Growth:
    """The slope of memory without load over requests, in percent per million requests.

    Attributes:
        low, high: where the slope is with a confidence of 95 %.
    """

    slope: float
    low: float
    high: float

    @property
    def detection_limit(self) -> float:
        """What the run can tell from nothing: half the interval's width."""
        return (self.high - self.low) / 2

    @property
    def outcome(self) -> Outcome:
        if self.high <= MOST_PERCENT_PER_MILLION:
            return Outcome.PASSED
        return Outcome.FAILED if self.low > MOST_PERCENT_PER_MILLION else Outcome.INCONCLUSIVE

    def __str__(self) -> str:
        return (
            f"{self.slope:+.2f} % per million requests (95 %: {self.low:+.2f} to {self.high:+.2f}), "
            f"detection limit {self.detection_limit:.2f} %"
        )


def find_measured(requests: Sequence[int]) -> int:
    """The position of the first rest phase after the warm-up."""
    total = requests[-1] if requests else 0
    return next((position for position, done in enumerate(requests) if done >= WARM_UP_SHARE * total), 0)


def fit_growth(requests: Sequence[int], memory: Sequence[int]) -> Growth:
    """Fit a line through what is in memory in each rest phase after the warm-up.

    The slope is the median of the slopes between all pairs (Theil and Sen), which outliers do not move. Its interval is
    Sen's, from the distribution of Kendall's rank correlation, with the variance of a series whose neighbours are
    correlated.

    Args:
        requests: answered until each rest phase, of the whole run.
        memory: bytes in each.
    """
    start = find_measured(requests)
    x, y = (np.asarray(values[start:], np.float64) for values in (requests, memory))
    unknown = Growth(math.nan, -math.inf, math.inf)
    # At the beginning of what is measured; the median of some, since one may be an outlier.
    level = float(np.median(y[: _FEWEST_REST_PHASES // 2])) if len(y) else math.nan
    if len(x) < _FEWEST_REST_PHASES or not level:
        return unknown
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] > x[first]
    slopes = np.sort((y[second] - y[first])[apart] / (x[second] - x[first])[apart])
    if len(slopes) == 0:
        return unknown
    slope = float(np.median(slopes))
    count = len(x)
    correlation = _correlate_neighbours(y - slope * x)
    variance = count * (count - 1) * (2 * count + 5) / 18 * (1 + correlation) / (1 - correlation)
    half = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * math.sqrt(variance)
    low, high = (round((len(slopes) + sign * half) / 2) for sign in (-1, 1))
    lowest, highest = (-math.inf, math.inf) if low < 0 or high >= len(slopes) else (slopes[low], slopes[high])
    return Growth(*(100 * _MILLION * float(each) / level for each in (slope, lowest, highest)))


def has_grown(requests: Sequence[int], counts: Sequence[int], share: float = 0) -> bool:
    """Whether a count is higher in the whole last third of what is measured than it was anywhere in its first third.

    Args:
        share: by how much of that it may be higher.
    """
    measured = counts[find_measured(requests) :]
    third = len(measured) // 3
    return third > 0 and min(measured[-third:]) > (1 + share) * max(measured[:third])


def _correlate_neighbours(residuals: Floats) -> float:
    """The correlation of each residual with the next one: 0 if there is none, or a negative one."""
    centred = residuals - residuals.mean()
    total = float(centred @ centred)
    if total == 0:
        return 0.0
    found = float(centred[1:] @ centred[:-1]) / total
    # What a line through few values takes of it: https://doi.org/10.1093/biomet/41.3-4.403
    unbiased = found + (2 + 4 * found) / len(residuals)
    return min(max(unbiased, 0.0), _MOST_CORRELATION)


@dataclass(frozen=True)
class Verdict:
    """What is wrong, what could not be decided, and the growth of memory."""

    growth: Growth
    problems: tuple[str, ...]
    doubts: tuple[str, ...]

    @property
    def outcome(self) -> Outcome:
        if self.problems:
            return Outcome.FAILED
        return Outcome.INCONCLUSIVE if self.doubts else Outcome.PASSED


def judge(
    requests: Sequence[int], memory: Sequence[int], counts: Mapping[str, Sequence[int]], faults: Mapping[str, int]
) -> Verdict:
    """
    Args:
        requests: answered until each rest phase.
        memory: bytes in each.
        counts: what must not grow, by name, in each: threads, descriptors.
        faults: what must not happen, by name: how often it did.
    """
    growth = fit_growth(requests, memory)
    problems = [f"{count:,} {name}" for name, count in faults.items() if count]
    problems += [
        f"the number of {name} grows: {', '.join(map(str, values[find_measured(requests) :]))}"
        for name, values in counts.items()
        if has_grown(requests, values, _MAY_GROW.get(name, 0))
    ]
    doubts = []
    match growth.outcome:
        case Outcome.FAILED:
            problems.append(f"memory without load grows: {growth}")
        case Outcome.INCONCLUSIVE:
            doubts.append(
                f"the run is too short to decide {MOST_PERCENT_PER_MILLION:g} %: memory without load {growth}"
            )
    return Verdict(growth, tuple(problems), tuple(doubts))
