"""Kernels of linear layers with packed weights on a CPU, and the choice between them by trying.

Which kernel is fastest depends on the CPU, the shape of the layer and the number of rows. The answers of float32 models
must not depend on the other rows of a batch, so a layer has one kernel for all numbers of rows, whose results are
bit-identical row by row. oneDNN and MKL add up a row's products in different orders, so one for few rows and the other
for many would give a row different bits. The operators used here are private to PyTorch, whose compiler emits them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, Final, Literal, Protocol, TypedDict, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from runners.core.device_thread import give_way
from runners.modeling.convolution_kernel import ConvolutionKernel

logger = logging.getLogger(__name__)

R = TypeVar("R")

# The number of rows that the packed layout is optimized for; it also serves few rows well.
_LAYOUT_ROWS = 512
# With fewer rows MKL calls other kernels, whose sums have another order.
_LEAST_MKL_ROWS = 16
_LEAST_SPEEDUP = 0.8
# How often a kernel that seems slower is timed again: other load on the machine may have slowed it, and the rows of the
# stock layer depend on the batch.
_REPEATS = 6
_REPEAT_SECONDS = 3.0
# Numbers of rows whose bits are compared: most batches of few rows, and some that are cut in several ways.
_COMPARED_ROWS = (1, 2, 3, *range(4, 65, 4), 104, 200, 392, 808)
# Layers with fewer weights take microseconds in all forms, so their timing does not count.
_SMALL_LAYER = 2**18
# A layer with more outputs is a vocabulary layer: it is large, but runs on few rows.
VOCABULARY = 10_000


class OneDNNKernel:
    """oneDNN with a weight in its own layout; a row has the same bits in every batch."""

    name: Final = "oneDNN"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """
        Args:
            weight: [outputs, inputs].
            bias: [outputs].

        Raises:
            AttributeError, RuntimeError: this PyTorch, CPU or dtype does not have the kernel.
        """
        self.outputs = len(weight)
        self._bias = bias
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _LAYOUT_ROWS)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return result


class MKLKernel:
    """MKL with a packed weight, for float32; `F.linear` packs the weight at every call."""

    name: Final = "MKL"

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """As `OneDNNKernel`."""
        self.outputs = len(weight)
        self._bias = bias
        self._packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight, _LAYOUT_ROWS)
        # The operator reads the shape of the stock weight, and its values only for another number of rows than it is
        # told.
        self._shape = weight.new_zeros(1, 1).expand(weight.shape)

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        count = prod(rows.shape[:-1])
        if count >= _LEAST_MKL_ROWS:
            return self._multiply(rows, count)
        padded = functional.pad(rows.reshape(count, -1), (0, 0, 0, _LEAST_MKL_ROWS - count))
        return self._multiply(padded, _LEAST_MKL_ROWS)[:count].reshape(*rows.shape[:-1], -1)

    def _multiply(self, rows: Tensor, count: int) -> Tensor:
        result: Tensor = torch.ops.mkl._mkl_linear(rows, self._packed, self._shape, self._bias, count)
        return result


class LinearKernel(Protocol):
    """Computes a linear layer.

    Attributes:
        outputs: how many it computes for each row.
    """

    outputs: int

    @property
    def name(self) -> str:
        """The library that computes it."""

    def __call__(self, rows: Tensor, /) -> Tensor:
        """[..., inputs] to [..., outputs]."""


KernelType = type[OneDNNKernel] | type[MKLKernel] | type[ConvolutionKernel]
KERNELS: tuple[KernelType, ...] = (OneDNNKernel, MKLKernel, ConvolutionKernel)


class KernelFacts(TypedDict):
    """A choice as JSON: the name of the kernel, and its speedups."""

    kernel: Literal["oneDNN", "MKL", "oneDNN's convolution"] | None
    speedups: dict[int, float]


@dataclass(frozen=True, slots=True)
class KernelChoice:
    """The kernel for a shape of layers.

    Attributes:
        kernel: None for the stock layer.
        speedups: how many times as fast as the stock layer it is, by number of rows; empty if it was not timed.
    """

    kernel: KernelType | None
    speedups: Mapping[int, float]

    def facts(self) -> KernelFacts:
        """For JSON."""
        return {"kernel": self.kernel.name if self.kernel else None, "speedups": dict(self.speedups)}

    @classmethod
    def from_facts(cls, facts: KernelFacts) -> KernelChoice:
        """Of `facts()`."""
        kernels = {kernel.name: kernel for kernel in KERNELS}
        name = facts["kernel"]
        return cls(kernels[name] if name else None, facts["speedups"])


def parse_facts(value: Any) -> KernelFacts:
    """What `KernelChoice.facts` has given, from JSON, whose keys are text.

    Raises:
        KeyError, TypeError, ValueError: it is something else.
    """
    name = value["kernel"]
    if name not in {None, *(kernel.name for kernel in KERNELS)}:
        raise ValueError(f"{name!r} is no kernel")
    speedups = {int(rows): float(factor) for rows, factor in dict(value["speedups"]).items()}
    return {"kernel": name, "speedups": speedups}


def is_timed(linear: nn.Linear) -> bool:
    """Whether the layer is large enough for its time to count, and not the one of the vocabulary."""
    return linear.weight.numel() >= _SMALL_LAYER and linear.out_features < VOCABULARY


@torch.inference_mode()
def choose_kernel(linear: nn.Linear, tried_rows: Mapping[int, int]) -> KernelChoice:
    """Choose the kernel for layers of the shape and dtype of `linear`.

    Kernels are timed beside the stock layer. The one with the largest product of speedups at all numbers of rows is
    chosen, among those whose rows are bit-identical in all batches and which are much slower than the stock layer for
    no number of rows. The stock layer stays if there is none.

    Args:
        tried_rows: the numbers of rows to time, and how often each.

    Raises:
        AttributeError, RuntimeError: not even the first kernel can be made for a layer whose kernels are timed.
    """
    weight, bias = linear.weight.detach(), linear.bias
    first, *others = KERNELS
    if not is_timed(linear):
        return KernelChoice(first, {})
    calls: list[Callable[[Tensor], Tensor]] = [linear, first(weight, bias)]
    types: list[KernelType] = [first]
    for kernel in others:
        give_way()
        try:
            calls.append(kernel(weight, bias))
        except (AttributeError, RuntimeError):
            continue
        types.append(kernel)
    rows = torch.randn(1, max(tried_rows), linear.in_features).to(weight.dtype)
    seconds, outputs = time_calls(calls, rows, tried_rows)
    speedups = [{count: each[0] / each[index] for count, each in seconds.items()} for index in range(1, len(calls))]
    same = [all(torch.equal(many[:, : one.shape[1]], one) for one in few) for *few, many in outputs[1:]]
    _log_trial(linear, types, speedups, same)
    fastest_first = sorted(range(len(types)), key=lambda index: prod(speedups[index].values()), reverse=True)
    usable = (index for index in fastest_first if same[index] and _keeps_bits(calls[1 + index], rows))
    slow: list[Mapping[int, float]] = []
    # The first of all kernels if none keeps its bits.
    for index in chain([next(usable, 0)], usable):
        pairs = {count: (each[0], each[1 + index]) for count, each in seconds.items()}
        confirmed = _confirm([linear, calls[1 + index]], rows, pairs, tried_rows)
        if min(confirmed.values()) >= _LEAST_SPEEDUP:
            return KernelChoice(types[index], confirmed)
        slow.append(confirmed)
    return KernelChoice(None, slow[0])


def _confirm(
    calls: Sequence[Callable[[Tensor], Tensor]],
    rows: Tensor,
    seconds: Mapping[int, tuple[float, float]],
    tried_rows: Mapping[int, int],
) -> dict[int, float]:
    """The speedups of a kernel, which is timed again where it seems much slower than the stock layer.

    Args:
        calls: the stock layer and the kernel.
        seconds: of both, by number of rows.
    """
    best = dict(seconds)
    end = time.monotonic() + _REPEAT_SECONDS
    for _ in range(_REPEATS):
        slow = {count: times for count, times in tried_rows.items() if _speedup(best[count]) < _LEAST_SPEEDUP}
        if not slow or time.monotonic() > end:
            break
        again = time_calls(calls, rows, slow)[0]
        best |= {count: (min(best[count][0], stock), min(best[count][1], own)) for count, (stock, own) in again.items()}
    return {count: _speedup(pair) for count, pair in best.items()}


def _speedup(seconds: tuple[float, float]) -> float:
    stock, kernel = seconds
    return stock / kernel


def _keeps_bits(kernel: Callable[[Tensor], Tensor], rows: Tensor) -> bool:
    """Whether a row has the same bits at each of many numbers of rows, for which a kernel may have other forms."""
    expected = kernel(rows)
    for count in _COMPARED_ROWS:
        give_way()
        if count < rows.shape[1] and not torch.equal(kernel(rows[:, :count].contiguous()), expected[:, :count]):
            return False
    return True


def time_calls(
    calls: Sequence[Callable[[Tensor], R]], rows: Tensor, tried_rows: Mapping[int, int]
) -> tuple[dict[int, list[float]], list[list[R]]]:
    """The seconds of each call by number of rows, and the outputs of each call, fewest rows first.

    Calls alternate, and the best of several counts, so that other load on the machine does not decide.
    """
    seconds: dict[int, list[float]] = {}
    outputs: list[list[R]] = [[] for _ in calls]
    for count, times in sorted(tried_rows.items()):
        part = rows[:, :count].contiguous()
        timings: list[list[float]] = [[] for _ in calls]
        for turn in range(times):
            if give_way():
                # Else the first call would be timed with the caches of other models.
                calls[0](part)
            for call, timing, results in zip(calls, timings, outputs, strict=True):
                start = time.perf_counter()
                result = call(part)
                timing.append(time.perf_counter() - start)
                if not turn:
                    results.append(result)
        seconds[count] = [min(timing) for timing in timings]
    return seconds, outputs


def _log_trial(
    linear: nn.Linear, types: Sequence[KernelType], speedups: Sequence[Mapping[int, float]], same: Sequence[bool]
) -> None:
    for kernel, each, is_same in zip(types, speedups, same, strict=True):
        logger.debug(
            "linear layer %d x %d: %s is %s as fast as the stock layer%s",
            linear.in_features,
            linear.out_features,
            kernel.name,
            describe_factors(each),
            "" if is_same else ", and its rows depend on the number of rows",
        )


def describe_factors(factors: Mapping[int, float]) -> str:
    """For the log, factors by number of rows: `1.2 times at 48 rows and 1.0 times at 1024 rows`."""
    return " and ".join(f"{factor:.1f} times at {rows} rows" for rows, factor in factors.items())
