"""The packed (padding-free) forward pass: the texts of a batch are concatenated to one row of T tokens.

Attention stays within each text. Stock `transformers` models run this way without changes: an attention function is
registered under a name (`AttentionInterface`), positions restart at every text, and a hook on the encoder's output
selects the tokens that the model's head reads.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward, ModelInputs, TokenSelection
from runners.encoder.sequences import TokenizedText
from runners.modeling.max_length import position_padding

_NAME = "packed"
# Kernels are built and cached per number of rows, so batches are rounded up to a multiple of this.
ROW_MULTIPLE = 16
# The options that models call attention with: first those that packed attention computes, then those that change no
# score.
_KNOWN_OPTIONS = frozenset({"is_causal", "position_bias", "scaling", "sliding_window"}) | frozenset(
    {
        "attention_mask", "cu_seq_lens_k", "cu_seq_lens_q", "deterministic", "max_length_k", "max_length_q",
        "output_attentions", "output_hidden_states", "position_ids", "return_dict", "training", "use_cache",
    }
)  # fmt: skip


@dataclass(slots=True)
class _AttentionCalls:
    """What a model requests of attention while it runs a batch.

    Attributes:
        count: how many calls there were.
        unsupported: what packed attention does not compute.
        windows: the sliding windows of the calls, in tokens.
        mask_sizes: the windows of the model's masks, in tokens; packed attention does not get these masks.
    """

    count: int = 0
    unsupported: list[str] = field(default_factory=list)
    windows: set[int] = field(default_factory=set)
    mask_sizes: set[int] = field(default_factory=set)

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


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the texts of a packed batch are.

    Attributes:
        bounds: text i has the rows from bounds[i] to bounds[i + 1].
        cu_seqlens: the bounds as int32 [texts + 1], on the model's device.
        longest: tokens of the longest text.
        total: T, the rows of the batch, padding rows included.
        calls: records the calls of the attention function; None unless the model is probed.
        window_masks: the masks that have been made for this batch.
    """

    bounds: list[int]
    cu_seqlens: Tensor
    longest: int
    total: int
    calls: _AttentionCalls | None = None
    window_masks: dict[tuple[int, int, bool], Tensor] = field(default_factory=dict)

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
_current = threading.local()


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention within each text.

    Args:
        query, key, value: [1, heads, T, d]; key and value may have fewer heads (grouped-query attention).

    Returns:
        [1, T, heads, d], and no attention weights.
    """
    layout: _Layout = _current.layout
    if layout.calls is not None:
        _record_call(layout.calls, query, key, mask, options, layout.total)
    scale: float | None = options.get("scaling")
    window: int | None = options.get("sliding_window")
    is_causal = options.get("is_causal")
    if is_causal is None:
        # The default of `sdpa_attention_forward` in `transformers`.
        is_causal = bool(getattr(module, "is_causal", True))
    bias: Tensor | None = options.get("position_bias")
    if query.device.type == "cuda" and query.dtype != torch.float32:
        if bias is not None:
            raise NotImplementedError("the kernel for GPUs takes no position bias")
        return _attend_on_gpu(query, key, value, layout, scale, window, is_causal), None
    shares_heads = key.shape[1] != query.shape[1]
    shape = (1, layout.total, query.shape[1], value.shape[3])
    result = torch.zeros(shape, dtype=query.dtype, device=query.device)
    for start, end in zip(layout.bounds, layout.bounds[1:], strict=False):
        length = end - start
        attention_mask = layout.window_mask(length, window, is_causal)
        if bias is not None:
            attention_mask = _add_bias(bias[..., start:end, start:end], attention_mask, is_causal)
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
    calls: _AttentionCalls, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any], total: int
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


def _attend_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: _Layout,
    scale: float | None,
    window: int | None,
    is_causal: bool,
) -> Tensor:
    """As `_packed_attention`, in one kernel for 16-bit dtypes: [1, T, heads, d]."""
    from torch.nn.attention.varlen import varlen_attn

    rows = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    left = -1 if window is None else window - 1
    result = varlen_attn(
        *rows, layout.cu_seqlens, layout.cu_seqlens, layout.longest, layout.longest,
        scale=scale, window_size=(left, 0 if is_causal else left), enable_gqa=key.shape[1] != query.shape[1],
    )  # fmt: skip
    assert isinstance(result, Tensor)
    return result[None]


def _no_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    """Packed attention gets no mask; the layout replaces it."""
    layout: _Layout = _current.layout
    # Some configs have a window of 0 tokens, which no layer uses.
    if layout.calls is not None and local_size:
        layout.calls.mask_sizes.add(int(local_size))


AttentionInterface.register(_NAME, _packed_attention)
AttentionMaskInterface.register(_NAME, _no_mask)


class PackedForward(Forward):
    """Runs all texts of a batch as one row of tokens."""

    name = mode = BatchMode.PACKED

    def __init__(self, inputs: ModelInputs) -> None:
        self._inputs = inputs
        self._position_padding = position_padding(inputs.model)
        self._takes_positions = any(
            "position_ids" in inspect.signature(module.forward).parameters
            for module in (inputs.model, inputs.model.base_model)
        )
        self._mean = getattr(inputs.model.config, "classifier_pooling", None) == "mean"
        self._stock_attention = [(config, config._attn_implementation) for config in _find_configs(inputs.model)]

    def attach(self) -> None:
        """Let the model call packed attention, if it calls attention through the interface.

        Raises:
            Exception: a part of the model does not allow another attention function.
        """
        self._inputs.model.set_attn_implementation(_NAME)

    def detach(self) -> None:
        """Restore the model's own attention."""
        for config, implementation in self._stock_attention:
            config._attn_implementation_internal = implementation

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        return self._run(texts, None)

    def run_checked(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """Run a batch, and check how the model calls attention.

        Raises:
            ValueError: a layer does not call the attention function, or with an option that it does not support.
        """
        calls = _AttentionCalls()
        result = self._run(texts, calls)
        layers = int(getattr(self._inputs.model.config.get_text_config(), "num_hidden_layers", 1))
        if (reason := calls.unsupported_reason(layers)) is not None:
            raise ValueError(reason)
        return result

    def _run(self, texts: Sequence[TokenizedText], calls: _AttentionCalls | None) -> tuple[Tensor, list[int]]:
        inputs = self._inputs
        lengths = [len(text.input_ids) for text in texts]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        total = -(-int(bounds[-1]) // ROW_MULTIPLE) * ROW_MULTIPLE
        arrays = {"input_ids": _join([text.input_ids for text in texts], total)}
        if self._takes_positions:
            arrays["position_ids"] = _join([self._positions(text.input_ids) for text in texts], total)
        if "token_type_ids" in inputs.names:
            arrays["token_type_ids"] = _join([text.token_type_ids for text in texts], total)
        tensors = {name: inputs.to_device(array[None]) for name, array in arrays.items()}
        cu_seqlens = torch.from_numpy(bounds).to(inputs.model.device)
        _current.layout = _Layout(bounds.tolist(), cu_seqlens, max(lengths), total, calls)
        counts = inputs.count_rows(texts)
        output = inputs.call(tensors, self._selection(arrays["input_ids"], bounds, lengths))
        return output.reshape(-1, output.shape[-1])[: sum(counts)], counts

    def _positions(self, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._position_padding is None:
            return np.arange(len(input_ids))
        padding = self._position_padding[0]
        real = input_ids != padding
        return np.where(real, np.cumsum(real) + padding, padding)

    def _selection(
        self, input_ids: NDArray[np.int64], bounds: NDArray[np.int32], lengths: list[int]
    ) -> Callable[[Tensor], Tensor] | None:
        match self._inputs.selection:
            case TokenSelection.ALL:
                return None
            case TokenSelection.FIRST if self._mean:
                return lambda hidden: torch.stack(
                    [text.mean(0, keepdim=True) for text in torch.split(hidden[0, : bounds[-1]], lengths)]
                )
            case TokenSelection.FIRST:
                firsts = self._inputs.to_device(bounds[:-1].astype(np.int64))
                return lambda hidden: hidden[0, firsts][:, None]
            case TokenSelection.MASKS:
                mask_positions = np.flatnonzero(input_ids[: bounds[-1]] == self._inputs.mask_token_id)
                masks = self._inputs.to_device(mask_positions)
                return lambda hidden: hidden[:, masks]


def _find_configs(model: PreTrainedModel) -> list[PretrainedConfig]:
    """The configs of a model and of the models inside it, each once."""
    configs = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    configs += [getattr(config, name) for config in configs for name in config.sub_configs if getattr(config, name)]
    return list({id(config): config for config in configs}.values())


def _join(arrays: Sequence[NDArray[np.int64]], total: int) -> NDArray[np.int64]:
    """Concatenate arrays to one row: int64 [total].

    Padding repeats the first number, since every embedding table has a row for it.
    """
    row = np.full(total, arrays[0][0], dtype=np.int64)
    np.concatenate(arrays, out=row[: sum(map(len, arrays))])
    return row
