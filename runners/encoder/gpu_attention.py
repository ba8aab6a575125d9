"""Attention within each sequence of a packed batch on a GPU, in as many kernels for one text as for hundreds.

FlashAttention computes 16-bit dtypes on GPUs of compute capability 8.0 and later. The memory-efficient kernel computes
everything else: float32, whose products it forms of three TF32 products so that they keep float32's precision, and
16 bits on older GPUs. It has no two-sided window; for models that need one, texts of similar length are padded to
rectangles, for attention only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from runners.encoder.transfers import upload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from runners.encoder.packed_attention import Layout

# FlashAttention's largest head, and the multiple that both kernels need.
_FLASH_WIDTH = 256
_WIDTH_MULTIPLE = 8
_FLASH_CAPABILITY = (8, 0)
# Custom mask types of the memory-efficient kernel: aten/src/ATen/native/transformers/cuda/mem_eff_attention.
_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1
# The shortest rectangle; longer ones double.
SHORTEST_SIDE = 16
# The scores of a rectangle, for each head.
_MOST_SCORES = 2**22


def attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, window: int | None, is_causal: bool
) -> Tensor:
    """Attention within each sequence of `layout.cu_seqlens`.

    Args:
        query, key, value: [1, heads, T, d]; key and value may have fewer heads (grouped-query attention).
        scale: factor of the scores; None for 1 / sqrt(d).
        window: a token attends to tokens at a distance below it; None for all tokens of its sequence.

    Returns:
        [1, T, heads, d].
    """
    width, value_width = query.shape[-1], value.shape[-1]
    if scale is None:
        scale = width**-0.5
    is_flash = _is_flash(query, value)
    if not is_flash and window is not None and not is_causal and layout.longest > window:
        return attend_in_rectangles(query, key, value, layout, scale, lambda _, __, part: part.window_mask(window))
    query, key, value = (_pad_heads(each.transpose(1, 2)) for each in (query, key, value))
    attend = _attend_by_flash if is_flash else _attend_efficiently
    return attend(query, key, value, layout, scale, window, is_causal)[..., :value_width]


def _is_flash(query: Tensor, value: Tensor) -> bool:
    is_small = max(query.shape[-1], value.shape[-1]) <= _FLASH_WIDTH and query.shape[-1] == value.shape[-1]
    return query.dtype != torch.float32 and is_small and _read_capability(query.device) >= _FLASH_CAPABILITY


def runs_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


@cache
def _read_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _pad_heads(rows: Tensor) -> Tensor:
    """Zeros at the end of each head, up to a multiple: they add nothing to scores, and are cut off the result."""
    missing = -rows.shape[-1] % _WIDTH_MULTIPLE
    return functional.pad(rows, (0, missing)) if missing else rows


def _attend_by_flash(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, is_causal: bool
) -> Tensor:
    """[1, T, heads, d] each."""
    left = -1 if window is None else window - 1
    result: Tensor = torch.ops.aten._flash_attention_forward(
        query[0], key[0], value[0], layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest,
        0.0, is_causal, False, scale=scale, window_size_left=left, window_size_right=0 if is_causal else left,
    )[0]  # fmt: skip
    return result[None]


def _attend_efficiently(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int | None, is_causal: bool
) -> Tensor:
    """[1, T, heads, d] each; it has no grouped-query attention, and a window only if it is causal."""
    group = query.shape[2] // key.shape[2]
    if group > 1:
        key, value = (each[:, :, :, None].expand(-1, -1, -1, group, -1).flatten(2, 3) for each in (key, value))
    result: Tensor = torch.ops.aten._efficient_attention_forward(
        query, key, value, None, layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest,
        0.0, _CAUSAL_FROM_TOP_LEFT if is_causal else _NO_MASK, False, scale=scale,
        window_size=window if is_causal else None,
    )[0]  # fmt: skip
    return result


def attend_in_rectangles(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: Layout,
    scale: float | None,
    make_mask: Callable[[Tensor, Tensor, Rectangle], Tensor],
) -> Tensor:
    """Texts of similar length are padded to rectangles, about as many as powers of two up to the longest text.

    Args:
        query, key, value: [1, heads, T, d].
        scale: as of `attend_on_gpu`.
        make_mask: the mask or bias of a rectangle, [texts, heads or 1, side, side], for its queries and keys,
            [texts, heads, side, d] each.

    Returns:
        [1, T, heads, d].

    Raises:
        NotImplementedError: the computation must hold for other batches too.
    """
    if layout.is_fixed:
        raise NotImplementedError("attention in rectangles has other kernels for each batch")
    if layout.rectangles is None:
        layout.rectangles = Rectangles(layout.bounds, layout.total, query.device)
    attended = []
    for rectangle in layout.rectangles.parts:
        rows = rectangle.rows

        def arrange(each: Tensor, rows: Tensor = rows) -> Tensor:
            """[1, heads, T, d] to [texts, heads, side, d]."""
            taken = each[0].index_select(1, rows.flatten())
            return taken.view(each.shape[1], *rows.shape, each.shape[3]).transpose(0, 1)

        queries, keys = arrange(query), arrange(key)
        part = functional.scaled_dot_product_attention(
            queries, keys, arrange(value), attn_mask=make_mask(queries, keys, rectangle), scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        # One after another: [texts * side, heads, d].
        attended.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, layout.rectangles.order)[None]


@dataclass(slots=True)
class Rectangle:
    """Texts of similar length, padded to `side` tokens.

    Attributes:
        rows: int64 [texts, side], where their tokens are in the batch; padding places repeat the text's first row.
        lengths: int64 [texts], their tokens.
    """

    rows: Tensor
    lengths: Tensor
    _masks: dict[int, Tensor] = field(default_factory=dict)

    @property
    def side(self) -> int:
        return self.rows.shape[1]

    def is_token(self) -> Tensor:
        """Whether a place has a token and no padding: bool [texts, side]."""
        return torch.arange(self.side, device=self.lengths.device) < self.lengths[:, None]

    def window_mask(self, window: int) -> Tensor:
        """The mask of a sliding window in each text, |i - j| < window: bool [texts, 1, side, side].

        All layers with a window of this size share it.
        """
        if window not in self._masks:
            places = torch.arange(self.side, device=self.lengths.device)
            distances = (places[:, None] - places).abs()
            is_token = self.is_token()[:, None]
            # A padding place attends to the first token, so that no row is without scores.
            self._masks[window] = torch.where(
                is_token[..., None], is_token[..., None, :] & (distances < window), places == 0
            )
        return self._masks[window]


class Rectangles:
    """The rows of a batch's texts, those of similar length side by side.

    Attributes:
        parts: the rectangles.
        order: int64 [T], the place of each row among the places of all rectangles; padding rows have the first place.
    """

    def __init__(self, bounds: Sequence[int], total: int, device: torch.device) -> None:
        """
        Args:
            bounds: text i has the rows from bounds[i] to bounds[i + 1].
            total: T, the rows of the batch.
        """
        starts = np.array(bounds[:-1])
        lengths = np.diff(bounds)
        sides = np.maximum(SHORTEST_SIDE, 2 ** np.ceil(np.log2(lengths)).astype(np.int64))
        order = np.zeros(total, dtype=np.int64)
        arrays: dict[str, NDArray[np.int64]] = {}
        places = 0
        for side, members in _group(sides):
            offsets = np.arange(side)
            is_token = offsets < lengths[members, None]
            rows = starts[members, None] + np.where(is_token, offsets, 0)
            order[rows[is_token]] = places + np.flatnonzero(is_token)
            arrays[f"rows {places}"], arrays[f"lengths {places}"] = rows, lengths[members]
            places += rows.size
        tensors = upload({"order": order, **arrays}, device)
        self.order = tensors.pop("order")
        values = iter(tensors.values())
        self.parts = list(map(Rectangle, values, values))


def _group(sides: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Texts of one side each, as many as their scores need bounded memory."""
    for side in np.unique(sides).tolist():
        members = np.flatnonzero(sides == side)
        most = max(1, _MOST_SCORES // side**2)
        for first in range(0, len(members), most):
            yield side, members[first : first + most]
