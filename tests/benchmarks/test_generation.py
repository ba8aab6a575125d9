from __future__ import annotations

import pytest

from benchmarks.generation import Measured, Plan, make_table


@pytest.mark.parametrize(
    ("round_seconds", "seconds", "plan"),
    [
        (10, 400, Plan(64, 10)),
        (50, 400, Plan(64, 8)),
        # Four rounds of shorter answers.
        (200, 400, Plan(32, 4)),
        # Not even four rounds of the shortest.
        (3200, 800, Plan(8, 2)),
        (32000, 400, Plan(8, 1)),
    ],
)
def test_as_much_as_fits_the_time(round_seconds: float, seconds: float, plan: Plan) -> None:
    assert Plan.of(round_seconds, seconds) == plan


def test_ratios_are_those_of_pairs() -> None:
    speeds = {
        "server": (10.0, 22.0), "vLLM": (10.0, 20.0), "server on transformers": (5.0, 11.0),
        "server, beside busy": (4.0, 8.8), "server on transformers, beside busy": (2.5, 5.5),
    }  # fmt: skip
    table = make_table({8: {name: [Measured(one, 50, 0) for one in found] for name, found in speeds.items()}})
    assert "| server / vLLM | 8 | 1.05 (1.00-1.10) | 1.05, 0.41 to 1.69 |\n" in table
    assert "| server, beside busy / server | 8 | 0.40 (0.40-0.40) | 0.40, 0.40 to 0.40 |\n" in table
    assert "| server on transformers / server | 8 | 0.50 (0.50-0.50) |" in table
