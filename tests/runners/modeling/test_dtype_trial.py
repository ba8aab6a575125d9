"""A dtype that the CPU emulates: warned of, or refused where it is over 2 times slower than float32."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from runners.core.errors import ArgumentsError
from runners.modeling.dtype_trial import check_dtype, judge_slowdowns, measure_slowdowns


@pytest.mark.parametrize(
    ("slowdowns", "error"),
    [
        (
            {32: 1.26, 256: 6.77},
            "dtype: on this CPU a linear layer takes longer in bfloat16 than in float32: 1.3 times at 32 rows and "
            "6.8 times at 256 rows; set --dtype=float32",
        ),
        ({32: 2.5, 256: 0.9}, "2.5 times at 32 rows and 0.9 times at 256 rows"),
    ],
)
def test_more_than_twice_as_slow_is_refused(slowdowns: dict[int, float], error: str) -> None:
    with pytest.raises(ArgumentsError, match=error):
        judge_slowdowns(torch.bfloat16, slowdowns)


@pytest.mark.parametrize(
    ("slowdowns", "warning"),
    [
        (
            {32: 0.8, 256: 1.7},
            "on this CPU a linear layer takes longer in float16 than in float32: 0.8 times at 32 rows and 1.7 times at "
            "256 rows; --dtype=float32 is faster",
        ),
        # As fast, but for what one measurement differs from the next.
        ({32: 1.05, 256: 0.5}, None),
    ],
)
def test_a_lesser_slowdown_is_a_warning(
    slowdowns: dict[int, float], warning: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        judge_slowdowns(torch.float16, slowdowns)
    assert [record.getMessage() for record in caplog.records] == ([] if warning is None else [warning])


def test_this_cpu() -> None:
    """What is decided is what a trial measures, whatever instructions the CPU has."""
    layer = nn.Linear(768, 1024, dtype=torch.bfloat16)
    slowdowns = measure_slowdowns(layer)
    assert [*slowdowns] == [32, 256]
    assert min(slowdowns.values()) > 0
    # Where it is near the limit, the next trial may decide otherwise.
    if max(slowdowns.values()) > 3:
        with pytest.raises(ArgumentsError, match="set --dtype=float32"):
            check_dtype(layer)
    elif max(slowdowns.values()) < 1.5:
        check_dtype(layer)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(nn.Linear(1024, 1024), id="float32"),
        pytest.param(nn.Linear(511, 512, dtype=torch.bfloat16), id="small: any dtype takes microseconds"),
        pytest.param(nn.Linear(64, 30_000, dtype=torch.bfloat16), id="a vocabulary runs on few rows"),
        pytest.param(nn.LayerNorm(8), id="no linear layers"),
        pytest.param(nn.Linear(1024, 1024, dtype=torch.bfloat16, device="meta"), id="not on a CPU"),
    ],
)
def test_nothing_is_tried(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runners.modeling.dtype_trial.measure_slowdowns", lambda _: {32: 9.0})
    check_dtype(model)


def test_the_largest_layer_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def measure(layer: nn.Linear) -> dict[int, float]:
        tried.append(layer.out_features)
        return {32: 1.0}

    monkeypatch.setattr("runners.modeling.dtype_trial.measure_slowdowns", measure)
    model = nn.Sequential(nn.Linear(768, 768), nn.Linear(768, 3072), nn.Linear(64, 30_000)).to(torch.bfloat16)
    check_dtype(model)
    assert tried == [3072]
