"""The forward pass of a batch: padding-free where the model can, padded and sorted by length where it cannot.

Padding-free ("packed"): the texts of a batch are laid end to end as one row of T tokens, and attention is confined to
each text. Stock `transformers` models run so without a change: an attention function is registered under a name
(`AttentionInterface`), positions restart at every text, and a hook on the encoder's output leaves only the tokens that
the head reads. Whether a model really computes the same this way is found out by trying, at load.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PretrainedConfig, PreTrainedModel

from runners.encoder.reading import TokenizedText
from runners.loading import position_padding

_NAME = "packed"
# Kernels are built and cached a number of rows, so batches are rounded up to a multiple of this.
ROW_MULTIPLE = 16
# How far the packed forward may be from the stock one in the probe, of the largest logit.
_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


class Rows(Enum):
    """Which token rows a head reads."""

    ALL = auto()
    FIRST = auto()
    MASKS = auto()


class Forward(Protocol):
    """A forward pass over a batch of texts."""

    padding_free: bool
    # How many batches may be under way, each in a thread of its own.
    at_once: int

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """What the head says of the rows it reads: [rows, classes], and how many rows are each text's."""


def count_rows(texts: Sequence[TokenizedText], rows: Rows, mask_token_id: int | None) -> list[int]:
    """How many rows of each text a head reads."""
    match rows:
        case Rows.ALL:
            return [len(text.input_ids) for text in texts]
        case Rows.FIRST:
            return [1] * len(texts)
        case Rows.MASKS:
            return [int((text.input_ids == mask_token_id).sum()) for text in texts]


def pad(texts: Sequence[TokenizedText], config: PretrainedConfig) -> dict[str, NDArray[np.int64]]:
    """The texts as rectangles, [texts, tokens] each, padded on the right."""
    longest = max(len(text.input_ids) for text in texts)
    arrays = {
        name: np.zeros((len(texts), longest), dtype=np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    arrays["input_ids"].fill(config.get_text_config().pad_token_id or 0)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        arrays["input_ids"][row, :length] = text.input_ids
        arrays["attention_mask"][row, :length] = 1
        arrays["token_type_ids"][row, :length] = text.token_type_ids
    return arrays


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the texts of a packed batch lie: bounds[i] to bounds[i + 1] is text i, T rows in all."""

    bounds: list[int]
    cu_seqlens: Tensor
    longest: int
    total: int
    window_masks: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def window_mask(self, length: int, window: int | None) -> Tensor | None:
        """Which tokens see which, [length, length], where a window of |i - j| < window leaves some out.

        Made once a batch: all layers with a window ask for the same.
        """
        if window is None or length <= window:
            return None
        if (length, window) not in self.window_masks:
            positions = torch.arange(length)
            self.window_masks[length, window] = (positions[:, None] - positions).abs() < window
        return self.window_masks[length, window]


# A model runs in one thread; the attention function finds the layout of that thread's batch here.
_current = threading.local()


def _packed_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attention inside each text: [1, heads, T, d] to [1, T, heads, d]."""
    layout: _Layout = _current.layout
    scale: float | None = options.get("scaling")
    window: int | None = options.get("sliding_window")
    if query.device.type == "cuda":
        return _attend_on_gpu(query, key, value, layout, scale, window), None
    result = torch.zeros(1, layout.total, query.shape[1], query.shape[3], dtype=query.dtype)
    for start, end in zip(layout.bounds, layout.bounds[1:], strict=False):
        attended = functional.scaled_dot_product_attention(
            query[:, :, start:end], key[:, :, start:end], value[:, :, start:end],
            attn_mask=layout.window_mask(end - start, window), scale=scale,
        )  # fmt: skip
        result[:, start:end] = attended.transpose(1, 2)
    return result, None


def _attend_on_gpu(
    query: Tensor, key: Tensor, value: Tensor, layout: _Layout, scale: float | None, window: int | None
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    rows = (query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1))
    reach = (-1, -1) if window is None else (window - 1, window - 1)
    bounds, longest = layout.cu_seqlens, layout.longest
    result = varlen_attn(*rows, bounds, bounds, longest, longest, scale=scale, window_size=reach)
    assert isinstance(result, Tensor)
    return result[None]


def _no_mask(*_: Any, **__: Any) -> None:
    """The mask of packed attention: the layout takes its place."""


AttentionInterface.register(_NAME, _packed_attention)
AttentionMaskInterface.register(_NAME, _no_mask)


class _RowSelector:
    """Leaves only some token rows of a module's output, while a selection is set."""

    def __init__(self, module: nn.Module) -> None:
        self.select: Callable[[Tensor], Tensor] | None = None
        module.register_forward_hook(self._hook)

    def _hook(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.select is not None:
            output.last_hidden_state = self.select(output.last_hidden_state)
        return output


class _ModelInputs:
    """What a model is given beside input_ids, and where its output is."""

    def __init__(self, model: PreTrainedModel, inputs: frozenset[str], rows: Rows, mask_token_id: int | None) -> None:
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.mask_token_id = mask_token_id
        self.selector = _RowSelector(_selected_module(model, rows)) if rows is not Rows.ALL else None

    def count_rows(self, texts: Sequence[TokenizedText]) -> list[int]:
        return count_rows(texts, self.rows, self.mask_token_id)

    def call(self, tensors: dict[str, Tensor], select: Callable[[Tensor], Tensor] | None) -> Tensor:
        """Run the model; the head's output where it has one, else the last hidden state.

        A head for question answering has two, which become the last dimension.
        """
        if self.selector is not None:
            self.selector.select = select
        output = self.model(**tensors)
        if hasattr(output, "start_logits"):
            return torch.stack((output.start_logits, output.end_logits), dim=-1)
        logits: Tensor | None = getattr(output, "logits", None)
        return output.last_hidden_state if logits is None else logits

    def to_device(self, array: NDArray[np.int64]) -> Tensor:
        """As a tensor where the model is; to a GPU through pinned memory."""
        tensor = torch.from_numpy(array)
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)


def _selected_module(model: PreTrainedModel, rows: Rows) -> nn.Module:
    """The module whose output the head reads; a pooler in between must get the selected rows too."""
    base = model.base_model
    encoder = getattr(base, "encoder", None)
    if rows is Rows.FIRST and getattr(base, "pooler", None) is not None and isinstance(encoder, nn.Module):
        return encoder
    return base


class PackedForward:
    """All texts of a batch in one row of tokens."""

    padding_free = True
    at_once = 1

    def __init__(self, inputs: _ModelInputs) -> None:
        self._inputs = inputs
        self._position_padding = position_padding(inputs.model)
        self._takes_positions = any(
            "position_ids" in inspect.signature(module.forward).parameters
            for module in (inputs.model, inputs.model.base_model)
        )
        self._mean = getattr(inputs.model.config, "classifier_pooling", None) == "mean"

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs
        lengths = [len(text.input_ids) for text in texts]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        total = -(-int(bounds[-1]) // ROW_MULTIPLE) * ROW_MULTIPLE
        arrays = {"input_ids": _join([text.input_ids for text in texts], total)}
        if self._takes_positions:
            arrays["position_ids"] = _join([self._positions(text.input_ids) for text in texts], total)
        if "token_type_ids" in inputs.inputs:
            arrays["token_type_ids"] = _join([text.token_type_ids for text in texts], total)
        tensors = {name: inputs.to_device(array[None]) for name, array in arrays.items()}
        cu_seqlens = torch.from_numpy(bounds).to(inputs.model.device)
        _current.layout = _Layout(bounds.tolist(), cu_seqlens, max(lengths), total)
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
        match self._inputs.rows:
            case Rows.ALL:
                return None
            case Rows.FIRST if self._mean:
                return lambda hidden: torch.stack(
                    [text.mean(0, keepdim=True) for text in torch.split(hidden[0, : bounds[-1]], lengths)]
                )
            case Rows.FIRST:
                firsts = self._inputs.to_device(bounds[:-1].astype(np.int64))
                return lambda hidden: hidden[0, firsts][:, None]
            case Rows.MASKS:
                found = np.flatnonzero(input_ids[: bounds[-1]] == self._inputs.mask_token_id)
                masks = self._inputs.to_device(found)
                return lambda hidden: hidden[:, masks]


class PaddedForward:
    """A batch as a rectangle, the texts' order kept; batches are best made of texts of like length."""

    padding_free = False
    at_once = 1

    def __init__(self, inputs: _ModelInputs) -> None:
        self._inputs = inputs

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs
        arrays = pad(texts, inputs.model.config)
        real = arrays["attention_mask"].astype(bool)
        tensors = {name: inputs.to_device(array) for name, array in arrays.items() if name in inputs.inputs}
        counts = inputs.count_rows(texts)
        match inputs.rows:
            case Rows.ALL:
                output = inputs.call(tensors, None)
                return output[inputs.to_device(real)], counts
            case Rows.FIRST:
                output = inputs.call(tensors, None)
            case Rows.MASKS:
                found = np.flatnonzero(real & (arrays["input_ids"] == inputs.mask_token_id))
                masks = inputs.to_device(found)
                output = inputs.call(tensors, lambda hidden: hidden.reshape(1, -1, hidden.shape[-1])[:, masks])
        return output.reshape(-1, output.shape[-1]), counts


@torch.inference_mode()
def choose_forward(
    model: PreTrainedModel, inputs: frozenset[str], rows: Rows, mask_token_id: int | None
) -> tuple[Forward, str]:
    """Packed if a probe of unequal texts gives what the stock model gives for each of them alone, else padded.

    Returns:
        The forward and why it was chosen, for the log.
    """
    model_inputs = _ModelInputs(model, inputs, rows, mask_token_id)
    padded = PaddedForward(model_inputs)
    probe = _probe_texts(model, mask_token_id)
    expected = torch.cat([padded.run([text])[0] for text in probe])
    stock_attention = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        packed = PackedForward(model_inputs)
        found = packed.run(probe)[0]
        if found.shape != expected.shape:
            raise ValueError(f"it answers {list(found.shape)} instead of {list(expected.shape)}")
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= _TOLERANCE[model.dtype]:
            raise ValueError(f"it differs by {difference:.0e} of the largest logit")
    except Exception as error:
        model.set_attn_implementation(stock_attention)
        return padded, f"padded batches, sorted by length: {type(model).__name__} cannot be packed ({error})"
    return packed, f"packed batches: {type(model).__name__} gives the same without padding ({difference:.0e})"


def _probe_texts(model: PreTrainedModel, mask_token_id: int | None) -> list[TokenizedText]:
    """Texts of unequal lengths, longer than a sliding window, with a mask each."""
    random = np.random.default_rng(0)
    config = model.config.get_text_config()
    window = getattr(config, "local_attention", 0) or 0
    texts = []
    for length in (7, 1 + min(2 * window + 40, 300), 21, 2):
        ids = random.integers(0, config.vocab_size, length)
        if mask_token_id is not None:
            ids[ids == mask_token_id] = 0
            ids[length // 2] = mask_token_id
        # A padding token would change what RoBERTa takes for a position.
        ids[ids == config.pad_token_id] = (config.pad_token_id or 0) + 1
        texts.append(TokenizedText(ids, np.zeros_like(ids), None, False))
    return texts


def _join(arrays: Sequence[NDArray[np.int64]], total: int) -> NDArray[np.int64]:
    """One row of `total` numbers; what the texts leave free repeats the first, which every table has an entry for."""
    row = np.full(total, arrays[0][0], dtype=np.int64)
    np.concatenate(arrays, out=row[: sum(map(len, arrays))])
    return row
