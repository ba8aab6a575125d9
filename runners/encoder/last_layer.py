"""The last layer of a packed batch, run on the rows that the model's head reads.

A head that reads the first token or the mask tokens of a text needs no other row of the last layer's output. Keys and
values are computed for all rows; queries, the attention's output and the feed-forward layers only for the rows that
are read. This works for layers that normalize after their residual connections, as BERT's do: their keys and values are
projections of the layer's input itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from runners.modeling.packed_linear import PackedLinear

# The names under which layers get their input, if not as the first argument.
_HIDDEN_STATES = "hidden_states"


@dataclass(slots=True)
class ReadRows:
    """The rows that are read of a batch, while the batch runs.

    Attributes:
        rows: int64 [R], their positions in the batch; R is a multiple of what kernels are built for.
        bounds: text i has the read rows from bounds[i] to bounds[i + 1].
        hidden: the input of the last layer, [1, T, hidden]; None before that layer.
        projections: keys and values of all rows, [1, T, heads * d] each.
    """

    rows: Tensor
    bounds: Sequence[int]
    hidden: Tensor | None = None
    projections: list[Tensor] = field(default_factory=list)


class ProjectionTrace:
    """Finds out which linear layers made the queries, keys and values of the last call of attention."""

    def __init__(self) -> None:
        # The outputs are kept, so that no other tensor gets their memory.
        self._outputs: list[tuple[Tensor, nn.Module]] = []
        self.projections: tuple[nn.Module | None, ...] = ()

    @contextmanager
    def observe(self, model: nn.Module) -> Iterator[None]:
        """Record the outputs of a model's linear layers."""
        linears = [module for module in model.modules() if isinstance(module, nn.Linear | PackedLinear)]
        handles = [linear.register_forward_hook(self._record) for linear in linears]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._outputs.clear()

    def record_call(self, *tensors: Tensor) -> None:
        """Record a call of attention with these queries, keys and values."""
        # Layers that are computed together have their outputs side by side in one storage.
        modules = {output.data_ptr(): module for output, module in self._outputs}
        self.projections = tuple(modules.get(tensor.data_ptr()) for tensor in tensors)

    def _record(self, module: nn.Module, _: Any, output: Tensor) -> None:
        self._outputs.append((output, module))


class LastLayer:
    """The last layer of a model; `read` is the rows of the running batch that it computes, None for all rows."""

    def __init__(self, model: nn.Module, projections: Sequence[nn.Module | None]) -> None:
        """
        Args:
            projections: the linear layers that make queries, keys and values.

        Raises:
            ValueError: they are not three layers of the last one of a list of layers.
        """
        self.read: ReadRows | None = None
        names = {module: name for name, module in model.named_modules()}
        found = [module for module in projections if module is not None]
        if len({*found}) != 3:
            raise ValueError("the queries, keys and values of its last layer are not projections of their own")
        layer = _find_layer(model, [names[module] for module in found])
        self._handles: list[RemovableHandle] = [layer.register_forward_pre_hook(self._narrow, with_kwargs=True)]
        for projection in found[1:]:
            self._handles.append(projection.register_forward_pre_hook(self._widen))
            self._handles.append(projection.register_forward_hook(self._keep))

    def detach(self) -> None:
        """Let the layer compute all rows again."""
        for handle in self._handles:
            handle.remove()

    def _narrow(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The layer gets the rows that are read."""
        read = self.read
        if read is None:
            return None
        hidden: Tensor = args[0] if args else kwargs[_HIDDEN_STATES]
        read.hidden, narrowed = hidden, hidden[:, read.rows]
        return ((narrowed, *args[1:]), kwargs) if args else (args, {**kwargs, _HIDDEN_STATES: narrowed})

    def _widen(self, _: nn.Module, __: tuple[Any, ...]) -> Any:
        """The projections of keys and values get all rows."""
        return None if self.read is None else (self.read.hidden,)

    def _keep(self, _: nn.Module, __: Any, output: Tensor) -> Any:
        """The model goes on with as many rows as the layer got; attention takes the kept ones."""
        if self.read is None:
            return None
        self.read.projections.append(output)
        return output[:, : len(self.read.rows)]


def attend_to_all(query: Tensor, read: ReadRows, bounds: Sequence[int], scale: float | None) -> Tensor:
    """Attention of the read rows to all rows of their texts.

    Args:
        query: [1, heads, R, d].
        bounds: text i has the rows from bounds[i] to bounds[i + 1] of the batch.

    Returns:
        [1, R, heads, d].
    """
    width = query.shape[3]
    key, value = (each.view(1, each.shape[1], -1, width).transpose(1, 2) for each in read.projections)
    result = query.new_zeros((1, query.shape[2], query.shape[1], width))
    starts = zip(read.bounds, read.bounds[1:], bounds, bounds[1:], strict=False)
    for first, last, start, end in starts:
        if first == last:
            continue
        attended = functional.scaled_dot_product_attention(
            query[:, :, first:last], key[:, :, start:end], value[:, :, start:end],
            scale=scale, enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        result[:, first:last] = attended.transpose(1, 2)
    return result


def _find_layer(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """The last layer of the list of layers that these modules are in.

    Raises:
        ValueError: they are in no list, or not in its last layer.
    """
    parts = paths[0].split(".")
    for length in range(len(parts) - 1, 0, -1):
        layers = model.get_submodule(".".join(parts[: length - 1]))
        prefix = ".".join(parts[:length])
        if isinstance(layers, nn.ModuleList):
            layer = model.get_submodule(prefix)
            if layer is layers[-1] and all(path.startswith(f"{prefix}.") for path in paths):
                return layer
    raise ValueError("its last call of attention is not in the last one of a list of layers")


def make_read_rows(positions: Tensor, bounds: Sequence[int], multiple: int) -> ReadRows | None:
    """The rows to read at these positions, padded to a multiple by repeating the first; None if there are none."""
    count = len(positions)
    if not count:
        return None
    padding = positions[:1].expand(-count % multiple)
    return ReadRows(torch.cat((positions, padding)), bounds)
