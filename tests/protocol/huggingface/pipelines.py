"""The pipelines of `transformers`, and the comparison of their answers with this server's."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import pipeline


@cache
def reference(task: Any, folder: str) -> Any:
    return pipeline(task, model=folder, device="cpu")


def check_records(found: Any, expected: Any) -> None:
    """The records, nested alike: the same names, and values that are equal or nearly."""
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            check_records(one, other)
        return
    assert found == {
        name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for name, value in expected.items()
    }
