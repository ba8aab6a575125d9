"""Attention within each text of a packed batch with a bias that depends on where two tokens are in their text.

The bias is made for each text alone, or on a GPU for rectangles of texts of similar length, never for all pairs of a
batch's rows: these would be 13 GB for 16,384 rows and 12 heads in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from runners.encoder.gpu_attention import runs_on_gpu
from runners.encoder.rectangles import Rectangle, attend_in_rectangles, find_side

if TYPE_CHECKING:
    from runners.encoder.packed_attention import Layout

# The bias of texts of n tokens, [texts or 1, heads, n, n], for their queries and keys, [texts, heads, n, d] each.
MakeBias = Callable[[Tensor, Tensor], Tensor]


def attend_with_bias(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scale: float | None, make_bias: MakeBias
) -> Tensor:
    """Attention within each text, whose scores are query * key * scale + bias.

    Args:
        query, key, value: [1, heads, T, d].
        scale: None for 1 / sqrt(d).
        make_bias: of texts of at most `find_longest` tokens.

    Returns:
        [1, T, heads, d]; on a CPU padding rows are 0.

    Raises:
        NotImplementedError: the computation must hold for other batches too.
    """
    if runs_on_gpu(query):

        def make_mask(queries: Tensor, keys: Tensor, rectangle: Rectangle) -> Tensor:
            is_padding = ~rectangle.is_token()[:, None, None]
            return make_bias(queries, keys).masked_fill(is_padding, -torch.inf)

        return attend_in_rectangles(query, key, value, layout, scale, make_mask)
    result = query.new_empty((1, layout.total, query.shape[1], value.shape[3]))
    # No text has the padding rows.
    result[:, layout.bounds[-1] :] = 0
    for start, end in pairwise(layout.bounds):
        queries, keys = query[:, :, start:end], key[:, :, start:end]
        attended = functional.scaled_dot_product_attention(
            queries, keys, value[:, :, start:end], attn_mask=make_bias(queries, keys), scale=scale
        )
        result[:, start:end] = attended.transpose(1, 2)
    return result


def take_bias(bias: Tensor) -> MakeBias:
    """The bias of a model that depends on positions alone, [1, heads, longest, longest], for texts of fewer tokens."""

    def take(queries: Tensor, _: Tensor) -> Tensor:
        tokens = queries.shape[2]
        return bias[..., :tokens, :tokens]

    return take


def find_longest(layout: Layout, rows: Tensor) -> int:
    """The most tokens of a text that a bias is made for; on a GPU padding is included.

    Args:
        rows: on the device that computes.
    """
    if not runs_on_gpu(rows):
        return layout.longest
    return find_side(layout.longest)
