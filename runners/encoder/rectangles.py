"""Rectangles of a packed batch's texts on a GPU: texts of similar length are padded to the next power of two.

A few rectangles hold a batch, about as many as powers of two up to the longest text, and more only if the scores of one
would take too much memory. The linear layers stay packed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from runners.encoder.transfers import upload

if TYPE_CHECKING:
    from runners.encoder.packed_attention import Layout

# The side of the smallest rectangle, in tokens; others double.
_SHORTEST_SIDE = 16
# The most scores of a rectangle, for each head.
_MOST_SCORES = 2**22


def find_side(tokens: int) -> int:
    """The side of the rectangle that a text of so many tokens is in."""
    return max(_SHORTEST_SIDE, 1 << (tokens - 1).bit_length())


def attend_in_rectangles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    make_mask: Callable[[Tensor, Tensor, Rectangle], Tensor],
) -> Tensor:
    """Attention within each text; texts of similar length are padded to rectangles, for attention only.

    Args:
        query, key, value: [1, heads, T, d].
        scale: factor of the scores; None for 1 / sqrt(d).
        make_mask: the mask or bias of a rectangle, [texts, heads or 1, side, side], for its queries and keys,
            [texts, heads, side, d] each.

    Returns:
        [1, T, heads, d].

    Raises:
        NotImplementedError: the computation must hold for other batches too.
    """
    if layout.is_fixed:
        raise NotImplementedError("attention with this window or bias has other kernels for each batch")
    if layout.rectangles is None:
        layout.rectangles = Rectangles(layout.bounds, layout.total, query.device)
    attended = []
    for rectangle in layout.rectangles.parts:
        rows = rectangle.rows

        def arrange(each: Tensor, rows: Tensor = rows) -> Tensor:
            """[1, heads, T, d] to [texts, heads, side, d]."""
            taken = each[0].index_select(1, rows.flatten())
            return taken.view(each.shape[1], *rows.shape, each.shape[3]).transpose(0, 1)

        # With fewer heads of keys PyTorch would choose no fused kernel, for a mask or for float32.
        queries, keys, values = (repeat_heads(arrange(each), 1, query.shape[1]) for each in (query, key, value))
        part = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=make_mask(queries, keys, rectangle), scale=scale
        )
        # One after another: [texts * side, heads, d].
        attended.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, layout.rectangles.order)[None]


def repeat_heads(rows: Tensor, dim: int, heads: int) -> Tensor:
    """Copy the heads of keys or values for the queries that share them (grouped-query attention).

    Args:
        dim: the dimension of the heads.
        heads: of the queries.
    """
    key_heads = rows.shape[dim]
    if key_heads == heads:
        return rows
    shared = rows.unsqueeze(dim + 1).expand(*rows.shape[: dim + 1], heads // key_heads, *rows.shape[dim + 1 :])
    # One head alone would only get a stride of 0.
    return shared.flatten(dim, dim + 1).contiguous()


@dataclass(slots=True)
class Rectangle:
    """Texts of similar length, padded to `side` tokens.

    Attributes:
        rows: int64 [texts, side], where their tokens are in the batch; padding slots repeat the text's first row.
        lengths: int64 [texts], their tokens.
    """

    rows: Tensor
    lengths: Tensor
    _masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def side(self) -> int:
        return self.rows.shape[1]

    def is_token(self) -> Tensor:
        """Whether a slot has a token, and no padding: bool [texts, side]."""
        return torch.arange(self.side, device=self.lengths.device) < self.lengths[:, None]

    def window_mask(self, window: int) -> Tensor:
        """The mask of a sliding window in each text, |i - j| < window: bool [texts, 1, side, side].

        All layers with a window of this size share it.
        """
        if window not in self._masks:
            slots = torch.arange(self.side, device=self.lengths.device)
            distances = (slots[:, None] - slots).abs()
            is_token = self.is_token()[:, None]
            # A padding slot attends to the first token, so that no row is without scores.
            self._masks[window] = torch.where(
                is_token[..., None], is_token[..., None, :] & (distances < window), slots == 0
            )
        return self._masks[window]


class Rectangles:
    """The rows of a batch's texts, those of similar length side by side.

    Attributes:
        parts: the rectangles.
        order: int64 [T], the slot of each row among those of all rectangles; padding rows have the first slot.
    """

    def __init__(self, bounds: Sequence[int], total: int, device: torch.device) -> None:
        """
        Args:
            bounds: text i has the rows from bounds[i] to bounds[i + 1].
            total: T, the rows of the batch.
        """
        starts = np.array(bounds[:-1])
        lengths = np.diff(bounds)
        sides = np.array([find_side(length) for length in lengths.tolist()])
        order = np.zeros(total, dtype=np.int64)
        arrays: dict[str, NDArray[np.int64]] = {}
        slots = 0
        for side, members in _group(sides):
            offsets = np.arange(side)
            is_token = offsets < lengths[members, None]
            rows = starts[members, None] + np.where(is_token, offsets, 0)
            order[rows[is_token]] = slots + np.flatnonzero(is_token)
            arrays[f"rows {slots}"], arrays[f"lengths {slots}"] = rows, lengths[members]
            slots += rows.size
        tensors = upload({"order": order, **arrays}, device)
        self.order = tensors.pop("order")
        values = iter(tensors.values())
        self.parts = list(map(Rectangle, values, values))


def _group(sides: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The positions of the texts of each rectangle, and its side; a rectangle's scores take bounded memory."""
    for side in np.unique(sides).tolist():
        members = np.flatnonzero(sides == side)
        most = max(1, _MOST_SCORES // side**2)
        for first in range(0, len(members), most):
            yield side, members[first : first + most]
