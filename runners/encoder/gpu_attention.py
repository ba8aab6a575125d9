"""Attention within each sequence of a packed batch on a GPU, in as many kernels for one text as for hundreds.

FlashAttention computes 16-bit dtypes on GPUs of compute capability 8.0 and later. The memory-efficient kernel computes
everything else: float32, whose products it forms of three TF32 products so that they keep float32's precision, and
16 bits on older GPUs. It has no two-sided window; for models that need one, texts of similar length are padded to
rectangles, for attention only.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from runners.encoder.transfers import upload

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from runners.encoder.packed_attention import Layout

# FlashAttention's largest head, and the multiple that both kernels need.
_FLASH_WIDTH = 256
_WIDTH_MULTIPLE = 8
_FLASH_CAPABILITY = (8, 0)
# Custom mask types of the memory-efficient kernel: aten/src/ATen/native/transformers/cuda/mem_eff_attention.
_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1
# The shortest rectangle; longer ones double.
_SHORTEST_SIDE = 16


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
        return _attend_in_rectangles(query, key, value, layout, scale, window)
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


def _attend_in_rectangles(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float, window: int
) -> Tensor:
    """Texts of similar length are padded to a rectangle: there are as many as powers of two up to the longest text.

    Args:
        query, key, value: [1, heads, T, d].

    Returns:
        [1, T, heads, d].
    """
    if layout.is_fixed:
        raise NotImplementedError("attention with a window in float32 has other kernels for each batch")
    if layout.rectangles is None:
        layout.rectangles = Rectangles(layout.bounds, layout.total, query.device)
    attended = []
    for rows, lengths in layout.rectangles:

        def arrange(each: Tensor, rows: Tensor = rows) -> Tensor:
            """[1, heads, T, d] to [texts, heads, side, d]."""
            taken = each[0].index_select(1, rows.flatten())
            return taken.view(each.shape[1], *rows.shape, each.shape[3]).transpose(0, 1)

        part = functional.scaled_dot_product_attention(
            arrange(query), arrange(key), arrange(value),
            attn_mask=layout.rectangles.window_mask(lengths, rows.shape[1], window), scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )  # fmt: skip
        # One after another: [texts * side, heads, d].
        attended.append(part.transpose(1, 2).flatten(0, 1))
    return torch.cat(attended).index_select(0, layout.rectangles.order)[None]


class Rectangles:
    """The rows of a batch's texts, those of similar length side by side.

    Attributes:
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
        sides = np.maximum(_SHORTEST_SIDE, 2 ** np.ceil(np.log2(lengths)).astype(np.int64))
        order = np.zeros(total, dtype=np.int64)
        arrays: dict[str, NDArray[np.int64]] = {}
        places = 0
        for side in np.unique(sides):
            members = np.flatnonzero(sides == side)
            offsets = np.arange(side)
            is_text = offsets < lengths[members, None]
            # Padding places repeat the text's first row.
            rows = starts[members, None] + np.where(is_text, offsets, 0)
            order[rows[is_text]] = places + np.flatnonzero(is_text)
            places += rows.size
            arrays[f"rows {side}"], arrays[f"lengths {side}"] = rows, lengths[members]
        tensors = upload({"order": order, **arrays}, device)
        self.order = tensors.pop("order")
        values = iter(tensors.values())
        self._parts = list(zip(values, values, strict=True))
        self._masks: dict[tuple[int, int], Tensor] = {}

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows of each rectangle, int64 [texts, side], and the lengths of its texts, int64 [texts]."""
        return iter(self._parts)

    def window_mask(self, lengths: Tensor, side: int, window: int) -> Tensor:
        """The mask of a sliding window in each text, |i - j| < window: bool [texts, 1, side, side].

        All layers with a window of this size share it.
        """
        if (side, window) not in self._masks:
            places = torch.arange(side, device=lengths.device)
            distances = (places[:, None] - places).abs()
            is_text = (places < lengths[:, None])[:, None]
            # A padding place attends to the first token, so that no row is without scores.
            self._masks[side, window] = torch.where(
                is_text[..., None], is_text[..., None, :] & (distances < window), places == 0
            )
        return self._masks[side, window]
