"""The kernels of linear layers, and the choice between them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from runners.modeling import linear_kernels
from runners.modeling.convolution_kernel import ConvolutionKernel
from runners.modeling.linear_kernels import (
    KERNELS,
    KernelChoice,
    KernelType,
    MKLKernel,
    OneDNNKernel,
    choose_kernel,
    parse_facts,
)

COUNTS = (1, 2, 3, 15, 16, 17, 48, 100, 200, 256)
TRIED_ROWS = {16: 2, 64: 2}


def make_kernel(kernel: KernelType, layer: nn.Linear) -> Any:
    try:
        return kernel(layer.weight.detach(), layer.bias)
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this PyTorch has no {kernel.name} kernel on this CPU: {error}")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel", [OneDNNKernel, MKLKernel, ConvolutionKernel])
@torch.inference_mode()
def test_a_row_is_right_and_has_the_same_bits_in_every_batch(kernel: KernelType, bias: bool) -> None:
    layer = nn.Linear(384, 768, bias=bias)
    run, rows = make_kernel(kernel, layer), torch.randn(1, 256, 384)
    expected = run(rows)
    torch.testing.assert_close(expected, layer(rows), atol=1e-5, rtol=0)
    for count in COUNTS:
        assert torch.equal(run(rows[:, :count].contiguous()), expected[:, :count]), f"{count} rows"


@pytest.mark.parametrize("kernel", [OneDNNKernel, MKLKernel, ConvolutionKernel])
@torch.inference_mode()
def test_a_kernel_takes_rows_of_any_shape_and_strides(kernel: KernelType) -> None:
    layer = nn.Linear(64, 32)
    run, rows = make_kernel(kernel, layer), torch.randn(2, 3, 4, 64)
    for each in (rows, rows[:, :2], rows[..., 0, :], rows[0, 0, 0], rows.transpose(1, 2)):
        torch.testing.assert_close(run(each), layer(each), atol=1e-5, rtol=0)


class SlowKernel:
    """Computes right, and takes its time."""

    name = "slow"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def __call__(self, rows: Tensor) -> Tensor:
        time.sleep(0.05)
        return nn.functional.linear(rows, self._weight, self._bias)


class FastKernel(SlowKernel):
    """Computes nothing, so that it is faster than any other."""

    name = "fast"

    def __call__(self, rows: Tensor) -> Tensor:
        return torch.ones(1, 1, 1).expand(*rows.shape[:-1], len(self._weight))


class UnstableKernel(FastKernel):
    """Its results depend on the number of rows."""

    name = "unstable"

    def __call__(self, rows: Tensor) -> Tensor:
        return super().__call__(rows) * rows.shape[1]


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        ((SlowKernel, FastKernel), FastKernel),
        ((FastKernel, SlowKernel), FastKernel),
        ((FastKernel, UnstableKernel), FastKernel),
        ((UnstableKernel, FastKernel), FastKernel),
        ((SlowKernel,), None),
    ],
)
def test_the_fastest_kernel_whose_rows_stay_the_same_is_chosen(
    kernels: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_kernels, "KERNELS", kernels)
    choice = choose_kernel(nn.Linear(512, 512), TRIED_ROWS)
    assert choice.kernel is expected
    assert [*choice.speedups] == [*TRIED_ROWS]


def test_a_kernel_that_is_slow_for_some_number_of_rows_gives_way_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    takes = {nn.Linear: {16: 1.0, 64: 1.0}, SlowKernel: {16: 2.0, 64: 0.01}, FastKernel: {16: 0.9, 64: 0.9}}

    def time_calls(calls: list[Any], rows: Tensor, tried: dict[int, int]) -> object:
        return {count: [takes[type(call)][count] for call in calls] for count in tried}, [[rows] for _ in calls]

    kernels: Any = (SlowKernel, FastKernel)
    monkeypatch.setattr(linear_kernels, "KERNELS", kernels)
    monkeypatch.setattr(linear_kernels, "time_calls", time_calls)
    monkeypatch.setattr(linear_kernels, "_keeps_bits", lambda *_: True)
    choice = choose_kernel(nn.Linear(512, 512), TRIED_ROWS)
    assert choice.kernel is kernels[1]
    assert choice.speedups == {16: 1 / 0.9, 64: 1 / 0.9}


class SlowedKernel(FastKernel):
    """Other load slows its first calls."""

    name = "slowed"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight, bias)
        self._calls = 0

    def __call__(self, rows: Tensor) -> Tensor:
        self._calls += 1
        time.sleep(0.05 * (self._calls <= 2 * sum(TRIED_ROWS.values())))
        return super().__call__(rows)


def test_a_kernel_that_seems_slow_is_timed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: Any = (SlowedKernel,)
    monkeypatch.setattr(linear_kernels, "KERNELS", kernels)
    choice = choose_kernel(nn.Linear(512, 512), TRIED_ROWS)
    assert choice.kernel is kernels[0]
    assert min(choice.speedups.values()) > 1


@pytest.mark.parametrize("kernel", [*KERNELS, None])
def test_a_choice_is_the_same_after_json(kernel: KernelType | None) -> None:
    choice = KernelChoice(kernel, {16: 1.5, 1024: 1.0})
    kept = parse_facts(json.loads(json.dumps(choice.facts())))
    assert KernelChoice.from_facts(kept) == choice


@pytest.mark.parametrize(
    "value",
    [None, [], {}, {"kernel": "MKL"}, {"kernel": "another", "speedups": {}}, {"kernel": ["MKL"], "speedups": {}},
     {"kernel": "MKL", "speedups": None}, {"kernel": "MKL", "speedups": {"rows": 1}}, {"kernel": "MKL", "speedups": [1]}],
)  # fmt: skip
def test_what_is_no_choice_is_refused(value: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        parse_facts(value)


def test_a_small_layer_and_a_vocabulary_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels: Any = (SlowKernel, FastKernel)
    monkeypatch.setattr(linear_kernels, "KERNELS", kernels)
    for layer in (nn.Linear(16, 16), nn.Linear(32, 10_000)):
        choice = choose_kernel(layer, TRIED_ROWS)
        assert choice.kernel is kernels[0]
        assert not choice.speedups
