"""Linear layers that get the same input, such as queries, keys and values, as one matrix product on a GPU.

Fewer kernels are launched, and a product of few rows keeps more of the GPU busy. Nothing is rearranged: the weights of
the layers become views of one weight, so that they are held once, and the model may still read them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from runners.core.device_thread import give_way
from runners.core.errors import brief
from runners.modeling.linear_kernels import VOCABULARY
from runners.modeling.merged_linears import Group, SharedKernel, find_groups
from runners.modeling.replaced_modules import find_difference, replace_modules
from runners.modeling.score_difference import find_tolerance

logger = logging.getLogger(__name__)


class FusedLinear(nn.Linear):
    """A linear layer that is computed with the others of its group; its output is a view of theirs."""

    def __init__(self, linear: nn.Linear, shared: SharedKernel, index: int) -> None:
        """
        Args:
            shared: computes the group.
            index: of this layer in the group.
        """
        # That of nn.Linear would make new parameters.
        nn.Module.__init__(self)
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight = linear.weight
        self.bias = linear.bias
        self._shared = shared
        self._index = index

    def forward(self, rows: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return self._shared.take(self._index, rows)


@torch.inference_mode()
def fuse_linears(
    model: nn.Module,
    linears: Sequence[nn.Linear],
    run: Callable[[], Tensor],
    expected: Tensor,
    *,
    parts_last: bool = False,
) -> str:
    """Fuse the linear layers of one input in place, if the model gives the same scores.

    Args:
        linears: the layers that may be fused.
        run: runs the model on a fixed input, and returns its scores.
        expected: the scores with stock layers.
        parts_last: as of `find_groups`.

    Returns:
        What was done and why, for the log.
    """
    groups = find_groups(linears, run, parts_last, lambda linear: linear.out_features < VOCABULARY)
    if not groups:
        return "stock linear layers: no two that follow each other get the same input"
    layers: dict[nn.Linear, nn.Linear] = {}
    reason = ""
    for fused, group in enumerate(groups):
        give_way()
        try:
            layers |= zip(group, _fuse(group), strict=True)
        except torch.OutOfMemoryError as error:
            reason = f"; no others, since there is no memory: {brief(error)}"
            groups = groups[:fused]
            break
    replace_modules(model, layers)
    difference = find_difference(run, expected, find_tolerance(linears[0].weight.dtype))
    if difference:
        replace_modules(model, {fused: linear for linear, fused in layers.items()})
        return f"stock linear layers: {type(model).__name__} does not run with fused ones ({difference})"
    return f"{len(layers)} linear layers are fused to {len(groups)}, one for each input{reason}"


def _fuse(group: Group) -> list[FusedLinear]:
    """Move the weights of a group into one weight.

    Raises:
        torch.OutOfMemoryError: there is no memory for the weights of a group beside those of the model.
    """
    outputs = [linear.out_features for linear in group]
    weight = _join([linear.weight for linear in group], outputs)
    bias = None if group[0].bias is None else _join([linear.bias for linear in group], outputs)
    shared = SharedKernel(partial(functional.linear, weight=weight, bias=bias), outputs)
    return [FusedLinear(linear, shared, index) for index, linear in enumerate(group)]


def _join(parameters: Sequence[Tensor], sizes: list[int]) -> Tensor:
    """Concatenate parameters, which become views of the result."""
    # No tensors of inference mode: parameters may be converted later.
    with torch.inference_mode(False), torch.no_grad():
        joined = torch.cat([parameter.detach() for parameter in parameters])
        for parameter, view in zip(parameters, torch.split(joined, sizes), strict=True):
            parameter.data = view
    return joined
