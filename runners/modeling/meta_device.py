"""Building a model on the meta device, whose tensors have no values, without PyTorch's compiler.

`transformers` builds a model there before it loads the weights. On the meta device some functions are Python code,
which imports the compiler and SymPy: seconds and 100 MB.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# With which models compute the frequencies of rotary positions.
_ARITHMETIC = (Tensor.__truediv__, Tensor.__rtruediv__, Tensor.div, Tensor.__rpow__, Tensor.pow, Tensor.reciprocal)


class WithoutCompiler(TorchFunctionMode):
    """Within the block, what models do on the meta device has shapes and dtypes from the CPU or from its arguments."""

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is init.normal_ and options["tensor"].is_meta:
            return options["tensor"]
        if function is torch.arange and options.get("device") == torch.device("meta"):
            return torch.arange(*args, **{**options, "device": "cpu"}).to("meta")
        if function is torch.empty_like and args[0].is_meta:
            return torch.empty(args[0].shape, **{"dtype": args[0].dtype, "device": "meta", **options})
        if function in _ARITHMETIC and args[0].is_meta:
            return function(*map(_on_cpu, args), **options).to("meta")
        return function(*args, **options)


def _on_cpu(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype) if isinstance(value, Tensor) and value.is_meta else value
