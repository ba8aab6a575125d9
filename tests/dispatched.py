"""What a computation does on its device, operator by operator, on a machine without that device."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class DispatchedCalls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that run within its block.

    Attributes:
        counts: how often each operator ran, by its name, such as `aten.linear.default`.
        largest: the most numbers of a tensor that an operator made.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **kwargs or {})
        self.counts[str(func)] += 1
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result


def record_calls() -> DispatchedCalls:
    return DispatchedCalls()
