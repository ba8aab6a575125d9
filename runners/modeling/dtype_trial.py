"""Whether a CPU is slower in the operator's data type than in float32: a CPU without instructions for it emulates it.

Trying is surer than a table of instruction sets: PyTorch may have no kernel for instructions that the CPU has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from runners.core.errors import ArgumentsError
from runners.modeling.dtypes import name_dtype
from runners.modeling.linear_kernels import OneDNNKernel, describe_factors, is_timed
from runners.modeling.packed_linear import pack_linear

logger = logging.getLogger(__name__)

# A short text alone, and a part of a full batch that tells as much as all of it.
_ROWS = (32, 256)
# The sides of the largest weight that is tried: seconds a product do not tell more than milliseconds.
_LARGEST_SIDE = 1024
_ROUNDS = 5
_SECONDS = 0.2
_WARNED_SLOWDOWN = 1.1
_REFUSED_SLOWDOWN = 2.0


def check_dtype(model: nn.Module) -> None:
    """Try the dtype of a model on a CPU against float32; a small model and one on a GPU are served in any.

    Raises:
        ArgumentsError: it is over 2 times slower. A lesser slowdown is logged as a warning.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear and is_timed(module)]
    layer = max(linears, key=lambda linear: linear.weight.numel(), default=None)
    if layer is None:
        return
    if layer.weight.device.type == "cpu" and layer.weight.dtype != torch.float32:
        judge_slowdowns(layer.weight.dtype, measure_slowdowns(layer))


def judge_slowdowns(dtype: torch.dtype, slowdowns: Mapping[int, float]) -> None:
    """Refuse a dtype, warn of it or accept it, by its slowdown against float32 at numbers of rows.

    Raises:
        ArgumentsError: at one of them it is over 2 times slower.
    """
    if max(slowdowns.values()) <= _WARNED_SLOWDOWN:
        return
    name = name_dtype(dtype)
    measured = f"on this CPU a linear layer takes longer in {name} than in float32: {describe_factors(slowdowns)}"
    if max(slowdowns.values()) > _REFUSED_SLOWDOWN:
        raise ArgumentsError(f"dtype: {measured}; set --dtype=float32")
    logger.warning("%s; --dtype=float32 is faster", measured)


@torch.inference_mode()
def measure_slowdowns(layer: nn.Linear) -> dict[int, float]:
    """How many times as long as in float32 a layer of this shape takes in its dtype, by the number of rows."""
    inputs, outputs = (min(side, _LARGEST_SIDE) for side in (layer.in_features, layer.out_features))
    dtype = layer.weight.dtype
    forms = {kind: _forms(nn.Linear(inputs, outputs, dtype=kind)) for kind in (torch.float32, dtype)}
    slowdowns = {}
    for row_count in _ROWS:
        rows = torch.randn(1, row_count, inputs)
        seconds: dict[torch.dtype, list[float]] = {kind: [] for kind in forms}
        end = time.perf_counter() + _SECONDS / len(_ROWS)
        # In turn, and the best of several, so that other load on the machine does not decide; the first runs warm up.
        for turn in range(_ROUNDS + 1):
            for kind, calls in forms.items():
                best = min(_time(call, rows.to(kind)) for call in calls)
                if turn:
                    seconds[kind].append(best)
            if turn and time.perf_counter() > end:
                break
        slowdowns[row_count] = min(seconds[dtype]) / min(seconds[torch.float32])
    return slowdowns


def _forms(linear: nn.Linear) -> list[Callable[[Tensor], Tensor]]:
    """A layer as it may be served: stock, and packed where oneDNN packs its dtype."""
    try:
        return [linear, pack_linear(linear, OneDNNKernel)]
    except (AttributeError, RuntimeError):
        return [linear]


def _time(call: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    start = time.perf_counter()
    call(rows)
    return time.perf_counter() - start
