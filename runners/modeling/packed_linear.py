"""Linear layers whose weights are packed for oneDNN at load, for models on a CPU.

In float32, `F.linear` calls MKL. MKL does not use AVX-512 on AMD, reorders the weight on every call, and gives a row
different last bits in different batches. oneDNN with packed weights has none of these faults. The operators used here
are private to PyTorch (its compiler emits them), so they are probed first: they must exist, agree with the stock
layers, and not be slower. Otherwise the stock layers stay.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from runners.core.errors import brief
from runners.modeling.score_difference import TOLERANCES, measure_difference

# Numbers of rows at which packed layers are timed (a short text alone, and a full batch), and how often each.
_TRIED_ROWS = {32: 20, 1024: 5}
_LEAST_SPEEDUP = 0.8
# Layers with fewer weights take microseconds in both forms, so their timing does not count.
_SMALL_LAYER = 2**18
# A layer with more outputs is a vocabulary layer: it is large, but runs on few rows.
VOCABULARY = 10_000
# The number of rows that the packed layout is optimized for; it also serves few rows well.
_LAYOUT_ROWS = 512


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, with its weight in oneDNN's layout.

    Attributes:
        weight_was_read: whether the model has read `weight` itself.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        # In a tuple, so that it is not registered as a submodule.
        self._stock: tuple[nn.Linear, ...] = (linear,)
        self.weight_was_read = False
        self._packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _LAYOUT_ROWS)

    @property
    def weight(self) -> Tensor:
        """The stock weight while packed layers are probed; after that an empty tensor of its dtype."""
        self.weight_was_read = True
        return self._stock[0].weight if self._stock else torch.empty(0, dtype=self.dtype)

    def drop_stock(self) -> None:
        """Free the memory of the stock weight."""
        self._stock = ()

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self.bias, "none", [], "")
        return result


@torch.inference_mode()
def pack_linears(model: nn.Module, run: Callable[[], Tensor], expected: Tensor) -> str:
    """Replace the linear layers of a model in place, if packed layers are equal and not slower.

    If the model reads the weight of a layer, that layer stays stock, unless the model also runs with an empty weight:
    T5 reads only its dtype.

    Args:
        run: runs the model on a fixed input, and returns its scores.
        expected: the scores with stock layers.

    Returns:
        What was done and why, for the log.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    if not linears:
        return "stock linear layers: the model has linear layers of its own kind"
    if linears[0].weight.device.type != "cpu":
        return "stock linear layers: the model is not on a CPU"
    try:
        packed = {linear: PackedLinear(linear) for linear in linears}
        unequal = [linear for linear in linears if not _equal(linear, packed[linear])]
    except (AttributeError, RuntimeError) as error:
        return f"stock linear layers: packed ones cannot be made ({brief(error)})"
    if unequal:
        return f"stock linear layers: packed ones of {unequal[0]} give other results"
    tried = max(linears, key=lambda linear: linear.weight.numel() * (linear.out_features < VOCABULARY))
    speedups = {rows: _speedup(tried, packed[tried], rows, times) for rows, times in _TRIED_ROWS.items()}
    faster = " and ".join(f"{speedup:.1f} times at {rows} rows" for rows, speedup in speedups.items())
    if tried.weight.numel() >= _SMALL_LAYER and min(speedups.values()) < _LEAST_SPEEDUP:
        return f"stock linear layers: packed ones are only {faster} as fast"
    _replace(model, packed)
    tolerance = TOLERANCES.get(linears[0].weight.dtype, 0.0)
    if reason := _find_difference(run, expected, tolerance):
        _replace(model, {layer: linear for linear, layer in packed.items()})
        return f"stock linear layers: {type(model).__name__} does not run with packed ones ({reason})"
    read = {layer: linear for linear, layer in packed.items() if layer.weight_was_read}
    for layer in packed.values():
        layer.drop_stock()
    stays = ""
    if read and _find_difference(run, expected, tolerance):
        _replace(model, read)
        stays = f"; {len(read)} stay stock, because {type(model).__name__} reads their weights"
    # Copy the remaining parameters, so that the memory-mapped weight file can be freed.
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return f"linear layers packed for oneDNN, {faster} as fast{stays}"


def _replace(model: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Replace modules of a model in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in replacements:
                setattr(module, name, replacements[child])


def _find_difference(run: Callable[[], Tensor], expected: Tensor, tolerance: float) -> str:
    """Why the model's scores are not as expected; empty if they are."""
    try:
        difference = measure_difference(run(), expected)
    except Exception as error:
        return brief(error)
    return "" if difference <= tolerance else f"its scores differ by {difference:.0e}"


@torch.inference_mode()
def warm_linears(model: nn.Module, row_counts: Iterable[int]) -> None:
    """Build oneDNN's kernels for these numbers of rows; the first use of a kernel takes about a millisecond more."""
    shapes = {
        (module.in_features, module.out_features): module
        for module in model.modules()
        if isinstance(module, PackedLinear) and module.out_features < VOCABULARY
    }
    for rows in row_counts:
        for (in_features, _), module in shapes.items():
            module(torch.zeros(1, rows, in_features, dtype=module.dtype))


def _equal(stock: nn.Linear, packed: PackedLinear) -> bool:
    rows = torch.randn(1, 8, stock.in_features, generator=torch.Generator().manual_seed(0)).to(stock.weight.dtype)
    expected = stock(rows)
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    return bool((packed(rows) - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1))


def _speedup(linear: nn.Linear, packed: PackedLinear, row_count: int, times: int) -> float:
    rows = torch.randn(1, row_count, linear.in_features).to(linear.weight.dtype)
    calls: tuple[Callable[[], Tensor], ...] = (lambda: linear(rows), lambda: packed(rows))
    timings: tuple[list[float], list[float]] = ([], [])
    # Alternate, and take the best of several runs, so that other load on the machine does not decide.
    for _ in range(times):
        for call, seconds in zip(calls, timings, strict=True):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
    return min(timings[0]) / min(timings[1])
