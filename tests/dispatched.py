"""What a computation does on its device, operator by operator, on a machine without that device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operators after which the CPU knows a number that a GPU has computed: it waits for that.
_WAITING = {
    "_local_scalar_dense", "_unique2", "equal", "index_put_", "is_nonzero", "item", "masked_select", "nonzero",
    "repeat_interleave", "unique_consecutive", "unique_dim",
}  # fmt: skip


class DispatchedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that run within its block.

    Attributes:
        kernels: how often each operator ran, by its name, such as `aten.linear.default`; a view of a tensor runs none.
        waits: how many operators would wait for a GPU.
        largest: the most numbers of a tensor that an operator made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels: Counter[str] = Counter()
        self.waits = 0
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.kernels[str(func)] += not func.is_view
        self.waits += _waits(func, args, kwargs)
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


class WithoutWaits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails at an operator that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not _waits(func, args, kwargs), f"{func} waits for the GPU"
        return func(*args, **kwargs or {})


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.overloadpacket.__name__
    if name != "index":
        return name in _WAITING
    _, *indices = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    # A mask as an index: how many rows it selects is counted first.
    return any(each.dtype == torch.bool for each in indices)
