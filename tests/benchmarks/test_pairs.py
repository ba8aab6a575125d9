from __future__ import annotations

from itertools import count

import pytest

from benchmarks.pairs import Ratio, take_turns


def test_sides_take_turns_and_neither_is_always_first() -> None:
    turns = count(1)
    measured = take_turns({"A": lambda: next(turns), "B": lambda: next(turns)}, 3)
    assert measured == {"A": [1, 4, 5], "B": [2, 3, 6]}


def test_a_ratio_is_that_of_its_pairs() -> None:
    """Not that of two means: a machine that got ten times slower after the first pair does not change it."""
    ratio = Ratio.of([120.0, 11.0, 13.0], [100.0, 10.0, 10.0])
    assert ratio.pairs == pytest.approx((1.2, 1.1, 1.3))
    assert str(ratio) == "1.20 (1.10-1.30)"


@pytest.mark.parametrize(
    ("pairs", "interval"),
    [
        ((1.0, 1.2), (-0.1706, 2.3706)),
        ((1.1, 1.2, 1.3), (0.9516, 1.4484)),
        # Beyond the table of quantiles: t is 2.093 with 19 degrees of freedom.
        ((0.9, 1.1) * 10, (0.9520, 1.0480)),
    ],
)
def test_confidence_interval(pairs: tuple[float, ...], interval: tuple[float, float]) -> None:
    assert Ratio(pairs).interval == pytest.approx(interval, abs=2e-4)


def test_one_pair_has_no_spread() -> None:
    assert str(Ratio((1.25,))) == "1.25"
    assert Ratio((1.25,)).interval is None


def test_pairs_need_both_sides() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Ratio.of([1.0, 2.0], [1.0])
