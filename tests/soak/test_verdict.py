from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tests.soak.verdict import SERIES, Growth, Outcome, fit_growth, has_grown, judge

MIB = 2**20
# Rest phases of a run of a million requests.
PHASES = 44
REQUESTS = [round(each) for each in np.linspace(20_000, 1_000_000, PHASES)]


def noise(seed: int, mib: float = 1.0, correlation: float = 0.0) -> np.ndarray:
    """Bytes, each partly what the one before was."""
    random = np.random.default_rng(seed)
    values = random.normal(0, mib * MIB, PHASES)
    for position in range(1, PHASES):
        values[position] = correlation * values[position - 1] + np.sqrt(1 - correlation**2) * values[position]
    return values


def flat(level: float = 1000) -> np.ndarray:
    return np.full(PHASES, level * MIB)


def leak(percent: float) -> np.ndarray:
    return flat() * (1 + percent / 100 * np.array(REQUESTS) / 1e6)


def plateau() -> np.ndarray:
    """As a server's: 996 MiB at first, 1088 MiB after 200,000 requests."""
    return np.minimum(996 + 92 * np.array(REQUESTS) / 200_000, 1088) * MIB


def fit(memory: np.ndarray) -> Growth:
    return fit_growth(REQUESTS, [round(each) for each in memory])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("memory", "outcome"),
    [
        pytest.param(flat(), Outcome.PASSED, id="flat"),
        pytest.param(plateau(), Outcome.PASSED, id="a plateau"),
        pytest.param(leak(2.5), Outcome.FAILED, id="a leak"),
        pytest.param(plateau() + leak(2.5) - flat(), Outcome.FAILED, id="a leak on a plateau"),
        pytest.param(plateau() + leak(20) - flat(), Outcome.FAILED, id="a large leak"),
    ],
)
def test_a_leak_is_found_and_a_plateau_is_none(memory: np.ndarray, outcome: Outcome, seed: int) -> None:
    assert fit(memory + noise(seed)).outcome is outcome


@pytest.mark.parametrize("correlation", [0, 0.6])
def test_the_interval_has_the_slope_as_often_as_it_says(correlation: float) -> None:
    growths = [fit(leak(2) + noise(seed, correlation=correlation)) for seed in range(200)]
    held = sum(growth.low <= 2 <= growth.high for growth in growths)
    assert held >= 0.9 * len(growths)
    assert not any(growth.outcome is Outcome.PASSED for growth in growths)
    assert np.median([growth.slope for growth in growths]) == pytest.approx(2, abs=0.1)


def test_correlated_noise_is_less_sure() -> None:
    limits = [
        np.median([fit(flat() + noise(seed, correlation=each)).detection_limit for seed in range(50)])
        for each in (0, 0.6)
    ]
    assert limits[0] < 0.75 * limits[1]


def test_an_outlier_does_not_decide() -> None:
    memory = flat() + noise(0)
    memory[-3] += 300 * MIB
    assert fit(memory).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("requests", "memory"),
    [
        pytest.param([], [], id="nothing"),
        pytest.param([1, 2, 3], [MIB, MIB, MIB], id="few rest phases"),
        pytest.param([7] * 40, [MIB] * 40, id="no requests between them"),
        pytest.param(
            [each // 100 for each in REQUESTS], [round(each) for each in flat() + noise(3)], id="few requests"
        ),
        pytest.param(REQUESTS, [round(each) for each in flat() + noise(3, mib=40)], id="much noise"),
    ],
)
def test_a_short_run_decides_nothing(requests: Sequence[int], memory: Sequence[int]) -> None:
    verdict = judge(requests, memory, {}, {})
    assert verdict.growth.detection_limit > 1
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "too short to decide 1 %" in verdict.doubts[0]


@pytest.mark.parametrize(
    ("counts", "grown"),
    [
        pytest.param([30] * PHASES, False, id="constant"),
        pytest.param([10] * 5 + [30] * (PHASES - 5), False, id="pools fill in the warm-up"),
        pytest.param([30 + each % 3 for each in range(PHASES)], False, id="up and down"),
        pytest.param([30 + 5 * (each == PHASES - 2) for each in range(PHASES)], False, id="once more"),
        pytest.param([30 + each // 9 for each in range(PHASES)], True, id="one after the other"),
        pytest.param([30 + each // 4 + each % 2 for each in range(PHASES)], True, id="up, with some noise"),
        pytest.param([30] * 40 + [31] * (PHASES - 40), False, id="a step late in the last third"),
        pytest.param([30] * 30 + [31] * (PHASES - 30), True, id="a step that stays"),
    ],
)
def test_counts(counts: list[int], grown: bool) -> None:
    assert has_grown(REQUESTS, counts) is grown
    problems = judge(REQUESTS, [round(each) for each in flat() + noise(1)], {"threads": counts}, {}).problems
    assert [problem.startswith("the number of threads grows: ") for problem in problems] == [True] * grown


def test_series_may_grow_a_little() -> None:
    """An error that is seldom has series of its own; a label that clients choose has them without end."""
    memory = [round(each) for each in flat() + noise(1)]
    seldom = [3426] * 30 + [3449] * (PHASES - 30)
    assert not judge(REQUESTS, memory, {SERIES: seldom}, {}).problems
    chosen = [3426 + 100 * phase for phase in range(PHASES)]
    assert "the number of series of /metrics grows" in judge(REQUESTS, memory, {SERIES: chosen}, {}).problems[0]


def test_a_verdict() -> None:
    memory = [round(each) for each in flat() + noise(1)]
    assert judge(REQUESTS, memory, {}, {"wrong answers": 0}).outcome is Outcome.PASSED
    failed = judge(REQUESTS, memory, {}, {"wrong answers": 0, "requests without an answer": 1200})
    assert (failed.problems, failed.outcome) == (("1,200 requests without an answer",), Outcome.FAILED)
    leaking = judge(REQUESTS, [round(each) for each in leak(3) + noise(1)], {}, {})
    assert leaking.problems[0].startswith("memory without load grows: +")
    short = judge(REQUESTS[:3], memory[:3], {}, {"wrong answers": 1})
    assert short.outcome is Outcome.FAILED
