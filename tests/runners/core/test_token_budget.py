"""When a batch may have fewer tokens."""

from __future__ import annotations

import logging
from itertools import pairwise

import pytest

from runners.core.token_budget import TokenBudget


@pytest.mark.parametrize(
    ("failed", "expected"),
    [
        ([], 1000),
        ([1000], 1000),
        ([1000, 500], 500),
        # The third batch was made before the budget was halved.
        ([1000, 1000, 1000], 500),
        ([1000, 500, 500, 250], 125),
        ([2000, 2000], 1000),
        ([1] * 30, 1),
    ],
)
def test_the_budget_is_halved_from_the_second_time_on(
    failed: list[int], expected: int, caplog: pytest.LogCaptureFixture
) -> None:
    budget, numbers = TokenBudget(1000), [1000]
    with caplog.at_level(logging.WARNING):
        for tokens in failed:
            budget.record_out_of_memory(tokens, "cuda:1")
            if budget.tokens != numbers[-1]:
                numbers.append(budget.tokens)
    assert budget.tokens == expected
    changes = [f"at most {now} tokens, not {before}; set --max_batch_tokens={now}" for before, now in pairwise(numbers)]
    assert len(caplog.messages) == len(changes)
    assert all(change in message for change, message in zip(changes, caplog.messages, strict=True))
