"""What one output of a generator counts, by when its tokens come."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from runners.core.generation import Delta, FinishReason
from runners.core.generation_metrics import TIME_PER_OUTPUT_TOKEN, GenerationMetrics, SequenceMetrics
from runners.core.metric_families import BORROWED_NAMES, flush


def count(registry: CollectorRegistry, family: str, model: str) -> float | None:
    flush()
    return registry.get_sample_value(f"{family}_count", {"model_name": model})


@pytest.mark.parametrize(
    ("name", "arrivals", "times"),
    [
        # How many deltas come at once, and how many mean times between tokens that gives.
        ("stream", [1, 1, 1], 1),
        ("one-token", [1], 0),
        ("beam-search", [4], 0),
    ],
)
def test_the_time_per_token_is_that_between_tokens(name: str, arrivals: list[int], times: int) -> None:
    sequence = SequenceMetrics(GenerationMetrics(name), 0.0, 5)
    for number, deltas in enumerate(arrivals, 1):
        reason: FinishReason | None = "length" if number == len(arrivals) else None
        sequence.add([Delta("a", (1,), reason)] * deltas)
    assert count(BORROWED_NAMES, TIME_PER_OUTPUT_TOKEN.name, name) == times
