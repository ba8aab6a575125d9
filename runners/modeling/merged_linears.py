"""Linear layers that get the same input, such as queries, keys and values, computed as one layer on a CPU.

Each call of a kernel costs a start and a barrier of the threads, and few rows leave them little to do in between: with
40 rows three layers of 768 x 768 take 1.3 to 1.5 times as long as one of 768 x 2304.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from runners.modeling.linear_kernels import KernelType, LinearKernel, describe_factors, is_timed, time_calls
from runners.modeling.trial_cache import recall_or_try

logger = logging.getLogger(__name__)

Group = tuple[nn.Linear, ...]

# Less is slower, and not only the noise of the trial.
_LEAST_SPEEDUP = 0.95


class SharedKernel:
    """The kernel of a group, and what its last call has computed, until each layer has taken its part.

    It keeps no tensor from one batch to the next, so that CUDA graphs and `torch.compile` can record it.
    """

    def __init__(self, kernel: Callable[[Tensor], Tensor], outputs: Sequence[int]) -> None:
        """
        Args:
            kernel: computes all layers, [..., inputs] to [..., outputs of all layers].
            outputs: of each layer.
        """
        self._kernel = kernel
        self._outputs = [*outputs]
        self._rows: Tensor | None = None
        self._results: dict[int, Tensor] = {}

    def take(self, index: int, rows: Tensor) -> Tensor:
        """The result of a layer, computed for all layers at the call of the first."""
        result = self._results.pop(index, None) if rows is self._rows else None
        if result is None:
            # Nothing is kept if the kernel fails.
            self._rows, self._results = None, {}
            results = dict(enumerate(torch.split(self._kernel(rows), self._outputs, dim=-1)))
            result = results.pop(index)
            self._rows, self._results = rows, results
        if not self._results:
            self._rows = None
        return result


class MergedPart:
    """The kernel of one layer of a group.

    Attributes:
        name: of the kernel.
        outputs: of all layers of the group.
    """

    def __init__(self, kernel: LinearKernel, shared: SharedKernel, index: int) -> None:
        self.name = kernel.name
        self.outputs = kernel.outputs
        self._shared = shared
        self._index = index

    def __call__(self, rows: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs of the layer], a view into the result for all layers."""
        return self._shared.take(self._index, rows)


@dataclass(frozen=True, slots=True)
class _Call:
    """A call of a layer. It holds the input, so that no later one can be the same object."""

    layer: nn.Linear
    rows: Tensor


def find_groups(
    linears: Sequence[nn.Linear],
    run: Callable[[], Any],
    parts_last: bool,
    accepts: Callable[[nn.Linear], bool] = is_timed,
) -> list[Group]:
    """Find the layers that can be merged: at every call they get the same input, one right after the other.

    Args:
        run: runs the model.
        parts_last: whether the last queries may run on fewer rows than their keys and values
            (`runners/encoder/last_layer.py`), so that the first of three layers that come last must stay alone.
        accepts: whether a layer is of a size that is worth merging.
    """
    calls: list[_Call] = []
    with _record(linears, calls):
        run()
    sequences: list[list[_Call]] = []
    for call in calls:
        if sequences and sequences[-1][-1].rows is call.rows:
            sequences[-1].append(call)
        else:
            sequences.append([call])
    found = [tuple(call.layer for call in sequence) for sequence in sequences]
    counts = Counter(layer for layers in {*found} for layer in {*layers})
    groups = [
        layers
        for layers in dict.fromkeys(found)
        if _can_merge(layers, accepts) and all(counts[one] == 1 for one in layers)
    ]
    if parts_last and groups and len(groups[-1]) > 2:
        groups[-1] = groups[-1][1:]
    return groups


@torch.inference_mode()
def merge(group: Group, kernel: KernelType, tried_rows: Mapping[int, int]) -> list[MergedPart] | None:
    """Merge layers, unless that is slower than one by one, or gives other bits.

    Args:
        kernel: that each layer has.
        tried_rows: the numbers of rows to time, and how often each.

    Returns:
        The kernel of each layer; None if the layers should stay alone.

    Raises:
        RuntimeError: the kernel does not exist for the merged shape, or there is too little memory.
    """
    outputs = [layer.out_features for layer in group]
    key = {
        "trial": "merged linear layers",
        "shape": [group[0].in_features, *outputs, group[0].bias is not None],
        "dtype": str(group[0].weight.dtype),
        "rows": list(tried_rows),
        "threads": torch.get_num_threads(),
        "kernel": kernel.name,
    }
    if not recall_or_try(key, lambda: _is_better(group, kernel, tried_rows), _parse_bool):
        return None
    merged = _merge_weights(group, kernel)
    shared = SharedKernel(merged, outputs)
    return [MergedPart(merged, shared, index) for index in range(len(group))]


def _parse_bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is no truth value")
    return value


def _merge_weights(group: Group, kernel: KernelType) -> LinearKernel:
    weight = torch.cat([layer.weight.detach() for layer in group])
    biases = [layer.bias.detach() for layer in group if layer.bias is not None]
    return kernel(weight, torch.cat(biases) if biases else None)


def _is_better(group: Group, kernel: KernelType, tried_rows: Mapping[int, int]) -> bool:
    """Whether merged layers give the same bits as one by one, and are faster at some and slower at no row count."""
    merged = _merge_weights(group, kernel)
    single = [kernel(layer.weight.detach(), layer.bias) for layer in group]
    rows = torch.randn(1, max(tried_rows), group[0].in_features).to(group[0].weight.dtype)
    calls = [lambda part: [each(part) for each in single], lambda part: [merged(part)]]
    seconds, outputs = time_calls(calls, rows, tried_rows)
    same = all(torch.equal(torch.cat(apart, -1), together) for apart, [together] in zip(*outputs, strict=True))
    speedups = {count: apart / together for count, (apart, together) in seconds.items()}
    logger.debug(
        "%d linear layers of %d inputs merged are %s as fast as one by one%s",
        len(group), group[0].in_features, describe_factors(speedups), "" if same else ", with other bits",
    )  # fmt: skip
    return same and prod(speedups.values()) > 1 and min(speedups.values()) >= _LEAST_SPEEDUP


def _can_merge(layers: Group, accepts: Callable[[nn.Linear], bool]) -> bool:
    kinds = {(layer.weight.dtype, layer.bias is None) for layer in layers}
    return len(layers) > 1 and len({*layers}) == len(layers) and len(kinds) == 1 and all(map(accepts, layers))


@contextmanager
def _record(linears: Sequence[nn.Linear], calls: list[_Call]) -> Iterator[None]:
    """Record the calls of layers."""

    def record(layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs:
            assert isinstance(layer, nn.Linear)
            calls.append(_Call(layer, inputs[0]))

    handles = [linear.register_forward_pre_hook(record) for linear in linears]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
