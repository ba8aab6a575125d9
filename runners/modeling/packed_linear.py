"""Linear layers whose weights are packed at load on a CPU; on a GPU those of one input are fused (fused_linear.py).

In float32, `F.linear` calls MKL, which packs the weight at every call. Its results for a row have other last bits in
batches of few rows, and it does not use AVX-512 on AMD. The kernels of `linear_kernels` have none of these faults, and
the fastest one is chosen for each shape of layers. Packed layers must agree with the stock layers; otherwise the stock
layers stay.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from runners.core.device_thread import give_way
from runners.core.errors import brief
from runners.modeling.fused_linear import fuse_linears
from runners.modeling.linear_kernels import (
    KERNELS,
    VOCABULARY,
    KernelChoice,
    KernelType,
    LinearKernel,
    choose_kernel,
    describe_factors,
    is_timed,
    parse_facts,
)
from runners.modeling.merged_linears import Group, find_groups, merge
from runners.modeling.replaced_modules import find_difference, replace_modules
from runners.modeling.score_difference import find_tolerance
from runners.modeling.trial_cache import recall_or_try

logger = logging.getLogger(__name__)

# Numbers of rows at which kernels are timed (short texts alone, and a full batch), and how often each.
_TRIED_ROWS = {16: 12, 48: 12, 1024: 4}


class PackedLinear(nn.Module):
    """`nn.Linear` for inference, with its weight in the layout of a kernel.

    Attributes:
        kernel: computes it.
        weight_was_read: whether the model has read `weight` itself.
    """

    def __init__(self, linear: nn.Linear, kernel: LinearKernel) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.dtype = linear.weight.dtype
        self.bias = linear.bias
        # In a tuple, so that it is not registered as a submodule.
        self._stock: tuple[nn.Linear, ...] = (linear,)
        self.weight_was_read = False
        self.kernel = kernel

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
        return self.kernel(rows)


def name_linear_kernels(model: nn.Module) -> str:
    """The kernels of a model's packed linear layers, such as MKL; stock if it has none."""
    names = {module.kernel.name for module in model.modules() if isinstance(module, PackedLinear)}
    return ", ".join(sorted(names)) or "stock"


@torch.inference_mode()
def pack_linears(
    model: nn.Module,
    run: Callable[[], Tensor],
    expected: Tensor,
    tried_rows: Mapping[int, int] = _TRIED_ROWS,
    *,
    parts_last: bool = False,
) -> str:
    """Replace the linear layers of a model in place, if packed layers are equal and not slower.

    If the model reads the weight of a layer, that layer stays stock, unless the model also runs with an empty weight:
    T5 reads only its dtype.

    Args:
        run: runs the model on a fixed input, and returns its scores.
        expected: the scores with stock layers.
        tried_rows: the numbers of rows at which kernels are timed, and how often each.
        parts_last: as of `find_groups`.

    Returns:
        What was done and why, for the log.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    if not linears:
        return "stock linear layers: the model has linear layers of its own kind"
    if linears[0].weight.device.type != "cpu":
        return fuse_linears(model, linears, run, expected, parts_last=parts_last)
    tolerance = find_tolerance(linears[0].weight.dtype)
    try:
        choices = _choose_kernels(linears, tried_rows)
        types = {linear: kernel for linear in linears if (kernel := choices[_shape(linear)].kernel)}
        merged = _merge_groups(find_groups([*types], run, parts_last), types, tried_rows)
        for parts in [merged, {}] if merged else [{}]:
            layers = {linear: parts.get(linear) or pack_linear(linear, kernel) for linear, kernel in types.items()}
            if not (reason := _try_layers(model, layers, run, expected, tolerance)):
                break
    except (AttributeError, RuntimeError) as error:
        return f"stock linear layers: packed ones cannot be made ({brief(error)})"
    if reason:
        return f"stock linear layers: {reason}"
    largest = max(linears, key=lambda linear: linear.weight.numel() * (linear.out_features < VOCABULARY))
    faster = describe_factors(choices[_shape(largest)].speedups)
    if not layers:
        return f"stock linear layers: packed ones are only {faster} as fast"
    together = sum(layer is merged.get(linear) for linear, layer in layers.items())
    return (
        f"linear layers packed for {_count_kernels(linears, choices)}"
        + (f", {together} of them computed with others of the same input" if together else "")
        + (f", the largest {faster} as fast as a stock one" if faster else "")
        + _free_stock(model, layers, lambda: not find_difference(run, expected, tolerance))
    )


def _try_layers(
    model: nn.Module,
    layers: Mapping[nn.Linear, PackedLinear],
    run: Callable[[], Tensor],
    expected: Tensor,
    tolerance: float,
) -> str:
    """Replace stock layers, or say why packed ones cannot."""
    unequal = next((linear for linear, layer in layers.items() if not _equal(linear, layer)), None)
    if unequal is not None:
        return f"packed ones of {unequal} give other results"
    replace_modules(model, layers)
    reason = find_difference(run, expected, tolerance)
    if reason:
        replace_modules(model, {layer: linear for linear, layer in layers.items()})
        return f"{type(model).__name__} does not run with packed ones ({reason})"
    return ""


def _free_stock(model: nn.Module, packed: Mapping[nn.Linear, PackedLinear], is_right: Callable[[], bool]) -> str:
    """Free the weights of the stock layers, but of those whose weights the model needs; these it names for the log."""
    read = {layer: linear for linear, layer in packed.items() if layer.weight_was_read}
    for layer in packed.values():
        layer.drop_stock()
    stays = ""
    if read and not is_right():
        replace_modules(model, read)
        stays = f"; {len(read)} stay stock, because {type(model).__name__} reads their weights"
    # Copy the remaining parameters, so that the memory-mapped weight file can be freed.
    for parameter in model.parameters():
        give_way()
        parameter.data = parameter.data.clone()
    return stays


def pack_linear(linear: nn.Linear, kernel: KernelType) -> PackedLinear:
    """A linear layer with a kernel of its own.

    Raises:
        AttributeError, RuntimeError: as the kernel.
    """
    give_way()
    return PackedLinear(linear, kernel(linear.weight.detach(), linear.bias))


def _merge_groups(
    groups: Sequence[Group], types: Mapping[nn.Linear, KernelType], tried_rows: Mapping[int, int]
) -> dict[nn.Linear, PackedLinear]:
    """The layers of those groups that are better computed together."""
    merged: dict[nn.Linear, PackedLinear] = {}
    for group in groups:
        give_way()
        [*kernels] = {types[linear] for linear in group}
        try:
            parts = merge(group, kernels[0], tried_rows) if len(kernels) == 1 else None
        except RuntimeError as error:
            logger.debug("linear layers are not merged: %s", brief(error))
            continue
        if parts:
            merged |= {linear: PackedLinear(linear, part) for linear, part in zip(group, parts, strict=True)}
    return merged


def _choose_kernels(linears: Sequence[nn.Linear], tried_rows: Mapping[int, int]) -> dict[object, KernelChoice]:
    """The kernel for each shape of layers, by an earlier trial or one of now."""
    examples = {_shape(linear): linear for linear in linears}
    return {shape: _choose_kernel(linear, tried_rows) for shape, linear in examples.items()}


def _choose_kernel(linear: nn.Linear, tried_rows: Mapping[int, int]) -> KernelChoice:
    give_way()
    if not is_timed(linear):
        return choose_kernel(linear, tried_rows)
    key = {
        "trial": "linear kernel",
        "shape": [linear.in_features, linear.out_features, linear.bias is not None],
        "dtype": str(linear.weight.dtype),
        "rows": list(tried_rows),
        "threads": torch.get_num_threads(),
        "kernels": [kernel.name for kernel in KERNELS],
    }
    facts = recall_or_try(key, lambda: choose_kernel(linear, tried_rows).facts(), parse_facts)
    return KernelChoice.from_facts(facts)


def _shape(linear: nn.Linear) -> object:
    return linear.in_features, linear.out_features, linear.weight.dtype


def _count_kernels(linears: Sequence[nn.Linear], choices: Mapping[object, KernelChoice]) -> str:
    """For the log: `oneDNN`, or with several kernels `oneDNN (14) and MKL (24)`."""
    kernels = [choices[_shape(linear)].kernel for linear in linears]
    counts = Counter("no kernel" if kernel is None else kernel.name for kernel in kernels)
    if len(counts) == 1:
        return next(iter(counts))
    return " and ".join(f"{name} ({count})" for name, count in counts.most_common())


@torch.inference_mode()
def warm_linears(model: nn.Module, row_counts: Iterable[int]) -> None:
    """Build oneDNN's kernels for these numbers of rows; the first use of a kernel takes about a millisecond more."""
    shapes = {
        (module.in_features, module.kernel.outputs): module
        for module in model.modules()
        if isinstance(module, PackedLinear) and module.out_features < VOCABULARY
    }
    for rows in row_counts:
        for (in_features, _), module in shapes.items():
            give_way()
            module(torch.zeros(1, rows, in_features, dtype=module.dtype))


def _equal(stock: nn.Linear, packed: PackedLinear) -> bool:
    give_way()
    rows = torch.randn(1, 8, stock.in_features, generator=torch.Generator().manual_seed(0)).to(stock.weight.dtype)
    expected = stock(rows)
    tolerance = 1e-5 if expected.dtype == torch.float32 else 2e-2
    return bool((packed(rows) - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1))
