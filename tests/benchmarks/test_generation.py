from __future__ import annotations

import pytest

from benchmarks.generation import Measured, Plan, make_table


@pytest.mark.parametrize(
    ("prompt_seconds", "token_seconds", "seconds", "plan"),
    [
        pytest.param(2, 0.125, 400, Plan(64, 10), id="the most"),
        pytest.param(18, 0.5, 400, Plan(64, 8), id="the most tokens"),
        pytest.param(20, 2.5, 400, Plan(32, 4), id="four rounds of shorter answers"),
        pytest.param(90, 1, 400, Plan(10, 4), id="prompts take most of the time"),
        pytest.param(0, 50, 800, Plan(8, 2), id="two rounds of the shortest answers"),
        pytest.param(100, 500, 400, Plan(8, 1), id="one round in any case"),
    ],
)
def test_as_much_as_fits_the_time(prompt_seconds: float, token_seconds: float, seconds: float, plan: Plan) -> None:
    assert Plan.of(prompt_seconds, token_seconds, seconds) == plan


def test_ratios_are_those_of_pairs() -> None:
    speeds = {
        "server": (10.0, 22.0), "vLLM": (10.0, 20.0), "server on transformers": (5.0, 11.0),
        "server, beside busy": (4.0, 8.8), "server on transformers, beside busy": (2.5, 5.5),
    }  # fmt: skip
    table = make_table({8: {name: [Measured(one, 50, 0) for one in found] for name, found in speeds.items()}})
    assert "| server / vLLM | 8 | 1.05 (1.00-1.10) | 1.05, 0.41 to 1.69 |\n" in table
    assert "| server, beside busy / server | 8 | 0.40 (0.40-0.40) | 0.40, 0.40 to 0.40 |\n" in table
    assert "| server on transformers / server | 8 | 0.50 (0.50-0.50) |" in table
