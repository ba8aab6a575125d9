"""Attention within each sequence of a packed batch on a GPU, in as many kernels for one text as for hundreds.

FlashAttention computes 16-bit dtypes on GPUs of compute capability 8.0 and later. The memory-efficient kernel computes
everything else: float32, whose products it forms of three TF32 products so that they keep float32's precision, and
16 bits on older GPUs. It has no two-sided window; for models that need one, texts of similar length are padded to
rectangles, for attention only.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from runners.encoder.rectangles import attend_in_rectangles, repeat_heads
from runners.modeling.dtype_selection import AMPERE

if TYPE_CHECKING:
    from runners.encoder.packed_attention import Layout

# FlashAttention's largest head, and the multiple that both kernels need.
_FLASH_WIDTH = 256
_WIDTH_MULTIPLE = 8
# Custom mask types of the memory-efficient kernel: aten/src/ATen/native/transformers/cuda/mem_eff_attention.
_NO_MASK, _CAUSAL_FROM_TOP_LEFT = 0, 1


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
    """Whether FlashAttention computes these dtypes and heads on their GPU."""
    is_small = max(query.shape[-1], value.shape[-1]) <= _FLASH_WIDTH and query.shape[-1] == value.shape[-1]
    return query.dtype != torch.float32 and is_small and _read_capability(query.device) >= AMPERE


def runs_on_gpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


@cache
def _read_capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _pad_heads(rows: Tensor) -> Tensor:
    """Pad each head with zeros to a multiple; they add nothing to scores, and are cut off the result."""
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
    # Copies: of heads with a stride of 0 the kernel computes a sequence's last row in another way, without a window of
    # its own (`advance_to_block` in kernel_forward.h).
    key, value = (repeat_heads(each, 2, query.shape[2]) for each in (key, value))
    result: Tensor = torch.ops.aten._efficient_attention_forward(
        query, key, value, None, layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest,
        0.0, _CAUSAL_FROM_TOP_LEFT if is_causal else _NO_MASK, False, scale=scale,
        window_size=window if is_causal else None,
    )[0]  # fmt: skip
    return result
