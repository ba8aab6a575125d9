"""A GPU's attention kernels, emulated on the CPU as their sources and schemas say, for a machine without a GPU.

The operators themselves are called, so that PyTorch checks every argument. Rows that no sequence covers stay unwritten
on a GPU; here they are NaN, which any use of them spreads.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from runners.encoder import biased_attention, gpu_attention, packed_attention, segments

HOPPER, TURING = (9, 0), (7, 5)


@contextmanager
def emulate_gpu(capability: tuple[int, int] = HOPPER) -> Iterator[None]:
    """Within the block packed attention and reductions of texts run as on a GPU of this compute capability."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    library.impl("_flash_attention_forward", _flash_attention, "CPU")  # type: ignore[no-untyped-call]
    library.impl("_efficient_attention_forward", _efficient_attention, "CPU")  # type: ignore[no-untyped-call]
    with pytest.MonkeyPatch.context() as patch:
        for module in (packed_attention, biased_attention):
            patch.setattr(module, "runs_on_gpu", lambda _: True)
        patch.setattr(segments, "_is_looped", lambda _: False)
        patch.setattr(gpu_attention, "_read_capability", lambda _: capability)
        try:
            yield
        finally:
            library._destroy()  # type: ignore[no-untyped-call]


def _flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor,
    cum_seq_k: Tensor,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float,
    window_size_left: int,
    window_size_right: int,
    **_: Any,
) -> tuple[Tensor, ...]:
    """mha_varlen_fwd in aten/src/ATen/native/transformers/cuda/flash_attn/flash_api.cpp: [T, heads, d] each."""
    assert query.dtype in (torch.float16, torch.bfloat16)
    assert query.shape[2] <= 256
    assert query.shape[2] % 8 == 0
    assert query.shape[1] % key.shape[1] == 0
    assert all(each.stride(2) == 1 for each in (query, key, value))
    right = 0 if is_causal else window_size_right
    _check(cum_seq_q, cum_seq_k, query, max_q, max_k)
    result = _attend(query, key, value, cum_seq_q, scale, window_size_left, right)
    return result, *(torch.empty(0) for _ in range(4))


def _efficient_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    custom_mask_type: int,
    compute_log_sumexp: bool = False,
    *,
    scale: float,
    window_size: int | None = None,
    **_: Any,
) -> tuple[Tensor | int, ...]:
    """_efficient_attention_forward in aten/src/ATen/native/transformers/cuda/attention.cu: [1, T, heads, d] each."""
    assert query.shape[0] == 1
    assert query.shape[2] == key.shape[2]
    assert bias is None
    assert window_size is None or custom_mask_type
    for each in (query, key, value):
        # Without a stride the kernel takes other heads for the rows of a sequence's last block.
        assert each.stride(2)
        # The kernels for float32 and for 16 bits need multiples of 4 numbers.
        assert not any(stride % 4 for stride in each.stride()[:3])
        assert each.stride(3) == 1
    _check(cu_seqlens_q, cu_seqlens_k, query[0], max_seqlen_q, max_seqlen_k)
    left, right = -1 if window_size is None else window_size - 1, 0 if custom_mask_type else -1
    result = _attend(query[0], key[0], value[0], cu_seqlens_q, scale, left, right)
    return result[None], *(torch.empty(0) for _ in range(3)), max_seqlen_q, max_seqlen_k


def _check(starts: Tensor, key_starts: Tensor, query: Tensor, longest: int, longest_key: int) -> None:
    assert starts.dtype == torch.int32
    assert starts.is_contiguous()
    assert torch.equal(starts, key_starts)
    assert starts[-1] == len(query)
    assert longest == longest_key
    # The kernel is started for this many rows of a sequence.
    assert starts.diff().max() <= longest


def _attend(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, scale: float, left: int, right: int) -> Tensor:
    """Attention by its formula in float64: [T, heads, d]; the window includes both of its ends, -1 has none."""
    group = query.shape[1] // key.shape[1]
    key, value = (each.repeat_interleave(group, dim=1) for each in (key, value))
    result = torch.full((*query.shape[:2], value.shape[2]), torch.nan, dtype=query.dtype)
    for start, end in pairwise(starts.tolist()):
        rows, places = slice(start, end), torch.arange(end - start)
        scores = torch.einsum("qhd,khd->hqk", query[rows].double(), key[rows].double()) * scale
        distances = places[:, None] - places
        if left >= 0:
            scores = scores.masked_fill(distances > left, -torch.inf)
        if right >= 0:
            scores = scores.masked_fill(-distances > right, -torch.inf)
        attended = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[rows].double())
        result[rows] = attended.to(query.dtype)
    return result
