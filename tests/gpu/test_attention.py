"""Attention of packed batches beside masked attention in float32 on the CPU."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

from runners.encoder.packed_attention import PACKED_ATTENTION, Layout, current
from runners.modeling.score_difference import TOLERANCES, measure_difference
from tests.gpu.conftest import Record
from tests.gpu.families import DTYPES

_LENGTHS = (1, 7, 64, 65, 130, 200, 2)
_PADDING_ROWS = 11
# Heads, heads of keys and values, and their width: BERT's, MiniLM's, a width that is no multiple of 8, and grouped ones.
_HEADS = ((4, 4, 64), (4, 4, 32), (4, 4, 20), (4, 2, 128))


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 8, 65, 129])
@pytest.mark.parametrize("dtype", DTYPES)
@torch.inference_mode()
def test_windows_equal_a_mask_beside_rows_of_nan(
    dtype: str, window: int | None, is_causal: bool, device: torch.device, record: Record
) -> None:
    """The padding rows are NaN, and the memory of the result is, before it is written."""
    used = getattr(torch, dtype)
    bounds = torch.tensor([0, *_LENGTHS]).cumsum(0).tolist()
    total = bounds[-1] + _PADDING_ROWS
    cu_seqlens = torch.tensor([*bounds, total], dtype=torch.int32, device=device)
    attend = AttentionInterface()[PACKED_ATTENTION]  # type: ignore[no-untyped-call]
    worst = 0.0
    for heads, shared, width in _HEADS:
        torch.manual_seed(0)
        query, key, value = (torch.randn(1, number, total, width) for number in (heads, shared, shared))
        for each in (query, key, value):
            each[:, :, bounds[-1] :] = torch.nan
        sent = [each.to(device, used) for each in (query, key, value)]
        _fill_free_memory(sent[0])
        current.layout = Layout(bounds, cu_seqlens, max(_LENGTHS), total)
        try:
            result, _ = attend(nn.Module(), *sent, None, is_causal=is_causal, sliding_window=window)
        finally:
            del current.layout
        query, key, value = (each.cpu().float() for each in sent)
        parts = [slice(start, end) for start, end in pairwise(bounds)]
        expected = torch.cat(
            [_attend(query[:, :, part], key[:, :, part], value[:, :, part], window, is_causal) for part in parts], dim=2
        ).transpose(1, 2)
        found = result[:, : bounds[-1]].cpu().float()
        assert found.isfinite().all()
        worst = max(worst, measure_difference(found, expected))
    record("difference of attention", worst, "relative", dtype=dtype, window=window, is_causal=is_causal)
    assert worst <= TOLERANCES[used]


def _fill_free_memory(like: Tensor) -> None:
    """Leave NaN in the memory that the next tensors of this size get."""
    tensors = [torch.full_like(like, torch.nan) for _ in range(8)]
    tensors.clear()


def _attend(query: Tensor, key: Tensor, value: Tensor, window: int | None, is_causal: bool) -> Tensor:
    """[1, heads, length, d] each."""
    places = torch.arange(query.shape[2])
    distances = places[:, None] - places
    mask = distances.abs() < (window or len(places))
    mask = mask & (distances >= 0) if is_causal else mask
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
