"""A key-value cache that grows in place, and that rows can leave and join.

Rows are aligned at the right: shorter rows have padding columns (tokens) at their left, which a mask excludes.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

# A full buffer grows by this share of its columns, and at least by this number of columns.
_GROWTH = 0.25
_MIN_GROWTH = 64


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values [rows, heads, columns, size] as views of larger buffers; the stock layer copies all in each step.

    All columns are kept, also for layers with a sliding window: the model's mask excludes those that are too old.
    """

    keys: Tensor
    values: Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Append columns; returns the keys and values of all columns."""
        if self._buffers is None:
            self._put((key_states, value_states), key_states.shape[-2])
            return key_states, value_states
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        buffers = self._buffers
        if end > min(buffer.shape[-2] for buffer in buffers):
            buffers = (_with_room(self.keys, end), _with_room(self.values, end))
        for buffer, states in zip(buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        self._put(buffers, end)
        return self.keys, self.values

    def select(self, rows: Tensor, columns: Tensor) -> None:
        """Keep only these rows and columns."""
        keys, values = (states.index_select(0, rows).index_select(2, columns) for states in (self.keys, self.values))
        self._put((keys, values), len(columns))

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows over other rows."""
        for states in (self.keys, self.values):
            states[targets] = states[sources]

    def join(self, other: GrowingLayer) -> None:
        """Append the rows of another layer."""
        width = max(self.keys.shape[-2], other.keys.shape[-2])
        self._put((_joined(self.keys, other.keys, width), _joined(self.values, other.values, width)), width)

    def _put(self, buffers: tuple[Tensor, Tensor], width: int) -> None:
        self._buffers = buffers
        self.dtype, self.device, self.is_initialized = buffers[0].dtype, buffers[0].device, True
        self.keys, self.values = (buffer[:, :, :width] for buffer in buffers)


class GrowingCache(DynamicCache):
    """A `DynamicCache` of growing layers."""

    layers: list[GrowingLayer]  # type: ignore[assignment]

    def __init__(self) -> None:
        Cache.__init__(self, layer_class_to_replicate=GrowingLayer)

    def share(self) -> GrowingCache:
        """A cache with the same keys and values, whose rows can be selected independently."""
        shared = copy.copy(self)
        shared.layers = [copy.copy(layer) for layer in self.layers]
        return shared

    def select(self, rows: Tensor, columns: Tensor) -> None:
        """Keep only these rows and columns."""
        for layer in self.layers:
            layer.select(rows, columns)

    def copy(self, sources: Tensor, targets: Tensor) -> None:
        """Copy rows over other rows."""
        for layer in self.layers:
            layer.copy(sources, targets)

    def join(self, other: GrowingCache) -> None:
        """Append the rows of another cache."""
        for layer, other_layer in zip(self.layers, other.layers, strict=True):
            layer.join(other_layer)


def join_masks(upper: Tensor, lower: Tensor) -> Tensor:
    """The masks of two batches [rows, columns] as one, aligned at the right."""
    width = max(upper.shape[1], lower.shape[1])
    mask = upper.new_zeros(len(upper) + len(lower), width)
    mask[: len(upper), width - upper.shape[1] :] = upper
    mask[len(upper) :, width - lower.shape[1] :] = lower
    return mask


def _capacity(width: int) -> int:
    return width + max(_MIN_GROWTH, int(width * _GROWTH))


def _with_room(states: Tensor, width: int) -> Tensor:
    rows, heads, filled, size = states.shape
    buffer = states.new_empty(rows, heads, _capacity(width), size)
    buffer[:, :, :filled] = states
    return buffer


def _joined(upper: Tensor, lower: Tensor, width: int) -> Tensor:
    split = len(upper)
    buffer = upper.new_empty(split + len(lower), upper.shape[1], _capacity(width), upper.shape[3])
    for part, states in ((buffer[:split], upper), (buffer[split:], lower)):
        padding = width - states.shape[2]
        # Masked columns have the weight 0, but 0 times an uninitialised NaN is NaN.
        part[:, :, :padding] = 0
        part[:, :, padding:width] = states
    return buffer
