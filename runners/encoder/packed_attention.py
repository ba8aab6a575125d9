"""Attention within each text of a packed batch, which stock `transformers` models call through `AttentionInterface`."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface

from runners.encoder.biased_attention import attend_with_bias, take_bias
from runners.encoder.gpu_attention import attend_on_gpu, runs_on_gpu
from runners.encoder.last_layer import ProjectionTrace, ReadRows, attend_to_all
from runners.encoder.rectangles import Rectangles

# The names under which it is registered. A model makes masks only for a name that has a mask function; decoders would
# also look for packed texts in their positions, and wait for the GPU.
PACKED_ATTENTION, PROBED_ATTENTION = "packed", "packed, probed"
# The options that models call attention with: first those that packed attention computes, then those that change no
# score.
_KNOWN_OPTIONS = frozenset({"is_causal", "position_bias", "scaling", "sliding_window"}) | frozenset(
    {
        "attention_mask", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "max_length_k", "max_length_q",
        "output_attentions", "output_hidden_states", "position_ids", "return_dict", "training", "use_cache",
    }
)  # fmt: skip


@dataclass(slots=True)
class AttentionCalls:
    """What a model requests of attention while it runs a batch.

    Attributes:
        count: how many calls there were.
        unsupported: what packed attention does not compute.
        windows: the sliding windows of the calls, in tokens.
        mask_sizes: the windows of the model's masks, in tokens; packed attention does not get these masks.
        attends_to_all: whether each row of the last call attends to all rows of its text, without a bias.
        trace: finds the projections of the last call.
    """

    count: int = 0
    unsupported: list[str] = field(default_factory=list)
    windows: set[int] = field(default_factory=set)
    mask_sizes: set[int] = field(default_factory=set)
    attends_to_all: bool = False
    trace: ProjectionTrace = field(default_factory=ProjectionTrace)

    def unsupported_reason(self, layers: int) -> str | None:
        """Why packed attention does not fit the model; None if it fits."""
        if self.count < layers:
            return f"{self.count} of its {layers} layers call the attention interface"
        if self.unsupported:
            return self.unsupported[0]
        for size in sorted(self.mask_sizes):
            # A mask of a two-sided window includes the window's end; the option `sliding_window` does not.
            if not {size, size + 1} & self.windows:
                return f"its mask confines attention to {size} tokens"
        return None


@dataclass(slots=True)
class Layout:
    """Where the sequences of a packed batch are.

    Attributes:
        bounds: text i has the rows from bounds[i] to bounds[i + 1].
        cu_seqlens: int32 [sequences + 1] on the model's device; sequence i has the rows from cu_seqlens[i] to
            cu_seqlens[i + 1]. After the texts there are sequences of padding rows; sequences may be empty.
        longest: rows of the longest sequence, or more.
        total: T, the rows of the batch, padding rows included.
        is_fixed: whether the computation is repeated for other batches: then only `cu_seqlens` says where texts are.
        calls: records the calls of the attention function; None unless the model is probed.
        read: the rows that the last layer computes; None for all rows.
        window_masks: the masks that have been made for this batch.
        rectangles: the texts side by side, once a layer has needed that.
    """

    bounds: list[int]
    cu_seqlens: Tensor
    longest: int
    total: int
    is_fixed: bool = False
    calls: AttentionCalls | None = None
    read: ReadRows | None = None
    window_masks: dict[tuple[int, int, bool], Tensor] = field(default_factory=dict)
    rectangles: Rectangles | None = None

    def window_mask(self, length: int, window: int | None, is_causal: bool) -> Tensor | None:
        """The mask of a sliding window, |i - j| < window: bool [length, length]; None if it masks nothing.

        It is made once per batch, since all layers with a window need the same mask.
        """
        if window is None or length <= window:
            return None
        key = (length, window, is_causal)
        if key not in self.window_masks:
            positions = torch.arange(length, device=self.cu_seqlens.device)
            distances = positions[:, None] - positions
            attention_mask = distances.abs() < window
            self.window_masks[key] = attention_mask & (distances >= 0) if is_causal else attention_mask
        return self.window_masks[key]


# The layout of the batch that this thread runs; the attention function reads it.
current = threading.local()


def packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention within each text.

    Args:
        query, key, value: [1, heads, T, d]; key and value may have fewer heads (grouped-query attention).

    Returns:
        [1, T, heads, d], and no attention weights.
    """
    layout: Layout = current.layout
    scale: float | None = options.get("scaling")
    if layout.read is not None and layout.read.projections:
        if layout.calls is not None:
            layout.calls.count += 1
        return attend_to_all(query, layout.read, layout.bounds, scale), None
    if layout.calls is not None:
        _record_call(layout.calls, query, key, mask, options, layout.total)
    window: int | None = options.get("sliding_window")
    is_causal = options.get("is_causal")
    if is_causal is None:
        # The default of `sdpa_attention_forward` in `transformers`.
        is_causal = bool(getattr(module, "is_causal", True))
    bias: Tensor | None = options.get("position_bias")
    if layout.calls is not None:
        layout.calls.attends_to_all = window is None and bias is None and not is_causal
        layout.calls.trace.record_call(query, key, value)
    if runs_on_gpu(query):
        if bias is not None:
            if window is not None or is_causal:
                raise NotImplementedError("a position bias with a window or causal attention on a GPU")
            return attend_with_bias(query, key, value, layout, scale, take_bias(bias)), None
        return attend_on_gpu(query, key, value, layout, scale, window, is_causal), None
    shares_heads = key.shape[1] != query.shape[1]
    result = query.new_empty((1, layout.total, query.shape[1], value.shape[3]))
    # No text has the padding rows.
    result[:, layout.bounds[-1] :] = 0
    for start, end in zip(layout.bounds, layout.bounds[1:], strict=False):
        length = end - start
        attention_mask = layout.window_mask(length, window, is_causal)
        if bias is not None:
            attention_mask = _add_bias(bias[..., :length, :length], attention_mask, is_causal)
        attended = functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
            attn_mask=attention_mask, is_causal=is_causal and attention_mask is None and length > 1, scale=scale,
            enable_gqa=shares_heads,
        )  # fmt: skip
        result[:, start:end] = attended.transpose(1, 2)
    return result, None


def _add_bias(bias: Tensor, attention_mask: Tensor | None, is_causal: bool) -> Tensor:
    """Mask the position bias of one text with -inf: [1, heads, length, length]."""
    if attention_mask is None and is_causal:
        attention_mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return bias if attention_mask is None else bias.masked_fill(~attention_mask, -torch.inf)


def _record_call(
    calls: AttentionCalls, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any], total: int
) -> None:
    calls.count += 1
    if (window := options.get("sliding_window")) is not None:
        calls.windows.add(int(window))
    unknown = [name for name, value in options.items() if name not in _KNOWN_OPTIONS and _is_set(value)]
    if unknown:
        calls.unsupported.append(f"its attention has {unknown[0]}")
    if query.shape[2] != total or key.shape[2] != total:
        calls.unsupported.append("it attends to other rows than those of the batch")
    if mask is not None and bool((~mask if mask.dtype == torch.bool else mask).any()):
        calls.unsupported.append("it makes an attention mask of its own")


def _is_set(value: object) -> bool:
    return value is not None and not (isinstance(value, int | float) and not value)


def _record_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    """Packed attention gets no mask; the layout replaces it."""
    layout: Layout = current.layout
    # Some configs have a window of 0 tokens, which no layer uses.
    if layout.calls is not None and local_size:
        layout.calls.mask_sizes.add(int(local_size))


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
AttentionInterface.register(PROBED_ATTENTION, packed_attention)
AttentionMaskInterface.register(PROBED_ATTENTION, _record_mask)
