"""The packed (padding-free) forward pass: the texts of a batch are concatenated to one row of T tokens.

Attention stays within each text. Stock `transformers` models run this way without changes: an attention function is
registered under a name (`AttentionInterface`), positions restart at every text, and a hook on the encoder's output
selects the tokens that the model's head reads.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward, ModelInputs, TokenSelection
from runners.encoder.last_layer import LastLayer, ReadRows, make_read_rows
from runners.encoder.packed_attention import PACKED_ATTENTION, PROBED_ATTENTION, AttentionCalls, Layout, current
from runners.encoder.relative_attention import RelativeAttention
from runners.encoder.segments import Segments
from runners.encoder.sequences import TokenizedText
from runners.modeling.max_length import position_padding

# Kernels are built and cached per number of rows, so batches are rounded up to a multiple of this.
ROW_MULTIPLE = 4
# Arrays of a batch beside the model's inputs: where sequences begin, and the rows that the model's head reads.
CU_SEQLENS, READ_ROWS = "cu_seqlens", "read_rows"
# The multiples for larger batches, and for all: oneDNN keeps 1024 kernels, and a model has about five shapes of layers.
_MULTIPLES = {513: 16, 129: 8, 0: ROW_MULTIPLE}


def round_up(rows: int) -> int:
    """The number of rows that a batch of so many tokens has."""
    multiple = next(multiple for least, multiple in _MULTIPLES.items() if rows >= least)
    return -(-rows // multiple) * multiple


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """The rows of a packed batch, on the CPU.

    Attributes:
        inputs: the model's inputs: int64 [1, T] each.
        bounds: text i has the rows from bounds[i] to bounds[i + 1].
        cu_seqlens: int32 [sequences + 1], see `Layout`.
        longest: rows of the longest sequence, or more.
        read_rows: int64 [R], where the rows are that the model's head reads; None if it reads all rows.
        counts: how many rows of scores belong to each text.
    """

    inputs: dict[str, NDArray[np.int64]]
    bounds: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    longest: int
    read_rows: NDArray[np.int64] | None
    counts: list[int]

    @property
    def total(self) -> int:
        """T, the rows of the batch, padding rows included."""
        return len(self.inputs["input_ids"][0])

    @property
    def arrays(self) -> dict[str, NDArray[Any]]:
        """Everything that a device needs."""
        read = {} if self.read_rows is None else {READ_ROWS: self.read_rows}
        return {**self.inputs, CU_SEQLENS: self.cu_seqlens, **read}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape that batches of different texts share.

    Attributes:
        rows: T, padding rows included.
        texts: the most texts of a batch, and the most rows that the model's head reads.
        longest: the most rows of a sequence.
    """

    rows: int
    texts: int
    longest: int

    @property
    def sequences(self) -> int:
        """The sequences of a batch: its texts, and padding rows, which may be too many for one sequence."""
        return self.texts + -(-self.rows // self.longest)

    def holds(self, other: Shape) -> bool:
        """Whether a batch of another shape fits into this one."""
        return self.rows >= other.rows and self.texts >= other.texts and self.longest >= other.longest


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
        self._reads_mean = getattr(inputs.model.config, "classifier_pooling", None) == "mean"
        self._relative_attention = RelativeAttention(inputs.model)
        self._stock_attention = [(config, config._attn_implementation) for config in _find_configs(inputs.model)]

    def attach(self) -> None:
        """Let the model call packed attention, if it calls attention through the interface.

        Raises:
            Exception: a part of the model does not allow another attention function.
        """
        self._inputs.model.set_attn_implementation(PACKED_ATTENTION)
        self._relative_attention.attach()

    def detach(self) -> None:
        """Restore the model's own attention."""
        self._relative_attention.detach()
        for config, implementation in self._stock_attention:
            config._attn_implementation_internal = implementation

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        return self._run(texts, None)

    def run_checked(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """Run a batch, and check how the model calls attention.

        Raises:
            ValueError: a layer does not call the attention function, or with an option that it does not support.
        """
        return self._run_traced(texts, AttentionCalls())

    def _run_traced(self, texts: Sequence[TokenizedText], calls: AttentionCalls) -> tuple[Tensor, list[int]]:
        with self._probing():
            result = self._run(texts, calls)
        layers = int(getattr(self._inputs.model.config.get_text_config(), "num_hidden_layers", 1))
        if (reason := calls.unsupported_reason(layers)) is not None:
            raise ValueError(reason)
        return result

    @contextmanager
    def _probing(self) -> Iterator[None]:
        """Let the model make masks within the block, so that their windows are recorded."""
        packed = [config for config, _ in self._stock_attention if config._attn_implementation == PACKED_ATTENTION]
        for config in packed:
            config._attn_implementation_internal = PROBED_ATTENTION
        try:
            yield
        finally:
            for config in packed:
                config._attn_implementation_internal = PACKED_ATTENTION

    def _run(self, texts: Sequence[TokenizedText], calls: AttentionCalls | None) -> tuple[Tensor, list[int]]:
        batch = self.lay_out(texts)
        output = self.compute(batch, self._inputs.upload(batch.arrays), calls)
        return output[: sum(batch.counts)], batch.counts

    def lay_out(self, texts: Sequence[TokenizedText], shape: Shape | None = None) -> PackedBatch:
        """Concatenate texts.

        Args:
            shape: the batch's shape, which the texts must fit into; None for the least that they need.
        """
        inputs = self._inputs
        lengths = [len(text.input_ids) for text in texts]
        bounds = np.cumsum([0, *lengths], dtype=np.int32)
        tokens = int(bounds[-1])
        total = round_up(tokens) if shape is None else shape.rows
        arrays = {"input_ids": _join([text.input_ids for text in texts], total)}
        read_rows = self._find_read_rows(arrays["input_ids"], bounds)
        if self._takes_positions:
            arrays["position_ids"] = _join([self._make_position_ids(text.input_ids) for text in texts], total)
        if "token_type_ids" in inputs.names:
            arrays["token_type_ids"] = _join([text.token_type_ids for text in texts], total)
        longest = max(*lengths, total - tokens) if shape is None else shape.longest
        sequences = len(texts) + (tokens < total) if shape is None else shape.sequences
        cu_seqlens = _extend(bounds, sequences + 1, total)
        if shape is not None:
            # The padding rows follow, as many to a sequence as it may have.
            ends = tokens + longest * np.arange(1, sequences + 1 - len(texts))
            cu_seqlens[len(bounds) :] = np.minimum(ends, total)
            read_rows = None if read_rows is None else _extend(read_rows, shape.texts, 0)
        return PackedBatch(
            inputs={name: array[None] for name, array in arrays.items()},
            bounds=bounds,
            cu_seqlens=cu_seqlens,
            longest=longest,
            read_rows=read_rows,
            counts=inputs.count_rows(texts),
        )

    def measure(self, texts: Sequence[TokenizedText]) -> Shape:
        """The shape that texts need."""
        is_read_whole = self._inputs.selection is TokenSelection.ALL
        read = 0 if is_read_whole else sum(self._inputs.count_rows(texts))
        lengths = [len(text.input_ids) for text in texts]
        return Shape(sum(lengths), max(len(texts), read), max(lengths))

    def compute(
        self,
        batch: PackedBatch,
        tensors: Mapping[str, Tensor],
        calls: AttentionCalls | None = None,
        *,
        is_fixed: bool = False,
    ) -> Tensor:
        """Run the model on a batch whose arrays are on its device.

        Args:
            tensors: `batch.arrays` on the device.
            calls: records how the model calls attention.
            is_fixed: whether the result must depend on the tensors alone, and on nothing else in the batch but its
                shape.

        Returns:
            The scores of all rows that the head reads, or of all rows: [rows, classes].
        """
        inputs = self._inputs
        model_inputs = {name: tensors[name] for name in batch.inputs}
        bounds = [] if is_fixed else batch.bounds.tolist()
        read = None if is_fixed else self._narrow(batch)
        current.layout = Layout(bounds, tensors[CU_SEQLENS], batch.longest, batch.total, is_fixed, calls, read)
        try:
            if inputs.selection is TokenSelection.POOLED:
                output = inputs.pool(model_inputs, _find_segments(batch, tensors))
            else:
                output = inputs.call(model_inputs, self._make_selection(batch, tensors, read))
        finally:
            # It holds tensors of all rows.
            del current.layout
        return output.reshape(-1, output.shape[-1])

    def _narrow(self, batch: PackedBatch) -> ReadRows | None:
        """The rows that the last layer computes; None for all rows."""
        return None

    def _make_position_ids(self, input_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """The position ids of one text: int64 [tokens]."""
        if self._position_padding is None:
            return np.arange(len(input_ids))
        padding = self._position_padding[0]
        real = input_ids != padding
        return np.where(real, np.cumsum(real) + padding, padding)

    def _find_read_rows(self, input_ids: NDArray[np.int64], bounds: NDArray[np.int32]) -> NDArray[np.int64] | None:
        """The rows that the model's head reads, int64 [R]; None if it reads all rows."""
        match self._inputs.selection:
            case TokenSelection.FIRST if not self._reads_mean:
                return bounds[:-1].astype(np.int64)
            case TokenSelection.MASKS:
                return np.flatnonzero(input_ids[: bounds[-1]] == self._inputs.mask_token_id)
            case _:
                return None

    def _make_selection(
        self, batch: PackedBatch, tensors: Mapping[str, Tensor], read: ReadRows | None
    ) -> Callable[[Tensor], Tensor] | None:
        """What selects the rows that the model's head reads of the last hidden state, [1, T, hidden]; None for all.

        Args:
            read: the rows that the last layer has computed; None if it has computed all.
        """
        if batch.read_rows is None:
            if self._inputs.selection is TokenSelection.ALL:
                return None
            segments = _find_segments(batch, tensors)
            return lambda hidden: segments.mean(hidden[0]).to(hidden.dtype)[:, None]
        # A narrow last layer has computed these rows, and some more to the next multiple.
        rows = slice(len(batch.read_rows)) if read is not None else tensors[READ_ROWS]
        if self._inputs.selection is TokenSelection.FIRST:
            return lambda hidden: hidden[0, rows][:, None]
        return lambda hidden: hidden[:, rows]


class NarrowForward(PackedForward):
    """As `PackedForward`; the last layer runs only on the rows that the model's head reads (last_layer.py)."""

    is_variant = True

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__(inputs)
        self._last_layer: LastLayer | None = None

    def detach(self) -> None:
        """Restore the model's own attention and last layer."""
        if self._last_layer is not None:
            self._last_layer.detach()
            self._last_layer = None
        super().detach()

    def run_checked(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """As `PackedForward.run_checked`; finds the last layer first.

        Raises:
            ValueError: the last layer needs all rows.
        """
        if self._last_layer is None:
            calls = AttentionCalls()
            with calls.trace.observe(self._inputs.model):
                # Which layers make the projections does not depend on the texts.
                self._run_traced(texts[:1], calls)
            if not calls.attends_to_all:
                raise ValueError("attention in its last layer is causal, or has a window or a bias")
            self._last_layer = LastLayer(self._inputs.model, calls.trace.projections)
        return super().run_checked(texts)

    def _run(self, texts: Sequence[TokenizedText], calls: AttentionCalls | None) -> tuple[Tensor, list[int]]:
        try:
            return super()._run(texts, calls)
        finally:
            if self._last_layer is not None:
                self._last_layer.read = None

    def _narrow(self, batch: PackedBatch) -> ReadRows | None:
        if self._last_layer is None or batch.read_rows is None:
            return None
        read_bounds = np.searchsorted(batch.read_rows, batch.bounds).tolist()
        self._last_layer.read = make_read_rows(torch.from_numpy(batch.read_rows), read_bounds, ROW_MULTIPLE)
        return self._last_layer.read


def _find_segments(batch: PackedBatch, tensors: Mapping[str, Tensor]) -> Segments:
    """The rows of each text. Offsets go on after the texts: the padding rows follow, and empty texts of a shape."""
    cu_seqlens = tensors[CU_SEQLENS]
    return Segments(np.diff(batch.bounds).tolist(), cu_seqlens.device, cu_seqlens)


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


def _extend(array: NDArray[Any], length: int, value: int) -> NDArray[Any]:
    """An array of this length that begins with another one, and repeats a value after it."""
    extended = np.full(length, value, dtype=array.dtype)
    extended[: len(array)] = array
    return extended
