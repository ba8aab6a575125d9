"""The forward pass of a batch as rectangles of tokens, and what every forward pass shares.

A model runs padding-free where it can (packing.py). Where it cannot, its batches are padded; where padding changes its
answers they are made of texts of one length; and where even other rows do, a text runs by itself. Which of these holds
is found out by trying, at load (forward_choice.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from enum import Enum, auto
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from runners.encoder.queue import BatchMode
from runners.encoder.sequences import TokenizedText
from runners.modeling.attention import SparseAttention
from runners.modeling.rotary import LengthDependentRope

Groups = list[list[int]]


class Rows(Enum):
    """Which token rows a head reads."""

    ALL = auto()
    FIRST = auto()
    MASKS = auto()


class Forward(ABC):
    """A forward pass over a batch of texts.

    Attributes:
        name: what the log calls it.
        mode: which texts may share a batch.
        at_once: how many batches may be under way, each in a thread of its own.
    """

    name: str
    mode: BatchMode
    at_once = 1

    @abstractmethod
    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """What the head says of the rows it reads: [rows, classes], and how many rows are each text's."""

    def run_checked(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """As `run`.

        Raises:
            ValueError: the model does not compute what this forward pass relies on.
        """
        return self.run(texts)

    def attach(self) -> None:  # noqa: B027
        """Prepare the model for this forward pass."""

    def detach(self) -> None:  # noqa: B027
        """Give the model back as it was before `attach`."""


def count_rows(texts: Sequence[TokenizedText], rows: Rows, mask_token_id: int | None) -> list[int]:
    """How many rows of each text a head reads."""
    match rows:
        case Rows.ALL:
            return [len(text.input_ids) for text in texts]
        case Rows.FIRST:
            return [1] * len(texts)
        case Rows.MASKS:
            return [int((text.input_ids == mask_token_id).sum()) for text in texts]


def pad(texts: Sequence[TokenizedText], padding_id: int, side: str) -> dict[str, NDArray[np.int64]]:
    """The texts as rectangles, [texts, tokens] each, padded on the `right` or the `left`."""
    longest = max(len(text.input_ids) for text in texts)
    arrays = {
        name: np.zeros((len(texts), longest), dtype=np.int64)
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    arrays["input_ids"].fill(padding_id)
    for row, text in enumerate(texts):
        length = len(text.input_ids)
        columns = slice(longest - length, None) if side == "left" else slice(length)
        arrays["input_ids"][row, columns] = text.input_ids
        arrays["attention_mask"][row, columns] = 1
        arrays["token_type_ids"][row, columns] = text.token_type_ids
    return arrays


def group_by_length(texts: Sequence[TokenizedText]) -> Groups:
    """The positions of the texts, those of one length together."""
    groups: dict[int, list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(len(text.input_ids), []).append(position)
    return list(groups.values())


def group_above(limit: int, texts: Sequence[TokenizedText]) -> Groups:
    """The positions of the texts, all up to a limit of tokens together, of longer ones those of one length."""
    groups = group_by_length(texts)
    short = sorted(chain.from_iterable(group for group in groups if len(texts[group[0]].input_ids) <= limit))
    longer = [group for group in groups if len(texts[group[0]].input_ids) > limit]
    return [short, *longer] if short else longer


def group_singly(texts: Sequence[TokenizedText]) -> Groups:
    """The positions of the texts, each by itself."""
    return [[position] for position in range(len(texts))]


class ModelInputs:
    """What a model is given, and where its output is."""

    def __init__(
        self,
        model: PreTrainedModel,
        names: frozenset[str],
        rows: Rows,
        mask_token_id: int | None,
        padding_id: int,
    ) -> None:
        """
        Args:
            names: which of input_ids, attention_mask and token_type_ids the model is given.
            rows: which the head reads.
            padding_id: the token that padding is made of.
        """
        self.model = model
        self.names = names
        self.rows = rows
        self.mask_token_id = mask_token_id
        self.padding_id = padding_id
        # Some weights of a model in 16 bit may be float32.
        floating = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
        self.dtype = min(floating, key=lambda dtype: dtype.itemsize)
        # Only generation reads what a decoder would keep of a text.
        model.config.get_text_config().use_cache = False
        self._selector = _RowSelector(_selected_module(model, rows)) if rows is not Rows.ALL else None
        self._sparse_attention = SparseAttention(model)
        self.rope = LengthDependentRope(model)

    def count_rows(self, texts: Sequence[TokenizedText]) -> list[int]:
        return count_rows(texts, self.rows, self.mask_token_id)

    def call(self, tensors: dict[str, Tensor], select: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Run the model; the head's output where it has one, else the last hidden state.

        A head for question answering has two outputs, which become the last dimension.

        Args:
            tensors: [texts, tokens] each.
            select: leaves only some rows of the last hidden state, before the head reads it.
        """
        if self._selector is not None:
            self._selector.select = select
        tokens = tensors["input_ids"].shape[1]
        self._sparse_attention.restore(tokens)
        self.rope.reset()
        output = self.model(**tensors)
        self._sparse_attention.observe(tokens)
        if hasattr(output, "start_logits"):
            return torch.stack((output.start_logits, output.end_logits), dim=-1)
        logits: Tensor | None = getattr(output, "logits", None)
        scores: Tensor | None = getattr(output, "last_hidden_state", None) if logits is None else logits
        if scores is None:
            raise ValueError(f"it gives {' and '.join(output.keys())}, and no vector for each token")
        # Perceiver answers for as many tokens as it has positions.
        return scores[:, :tokens] if self.rows is not Rows.FIRST and select is None else scores

    def run_alone(self, text: TokenizedText) -> Tensor:
        """What the stock model says of one text, without padding: [rows, classes].

        Raises:
            ValueError: it does not answer row by row.
        """
        tensors = self.to_tensors(pad([text], self.padding_id, "right"))
        output = self.call(tensors)
        tokens = len(text.input_ids)
        expected = (1,) if self.rows is Rows.FIRST else (1, tokens)
        if output.shape[:-1] != expected:
            raise ValueError(f"it answers a text of {tokens} tokens with the shape {list(output.shape)}")
        match self.rows:
            case Rows.ALL:
                return output[0]
            case Rows.FIRST:
                return output
            case Rows.MASKS:
                return output[0, torch.from_numpy(np.flatnonzero(text.input_ids == self.mask_token_id))]

    def to_tensors(self, arrays: dict[str, NDArray[np.int64]]) -> dict[str, Tensor]:
        """Those of the arrays that the model takes, where the model is."""
        return {name: self.to_device(array) for name, array in arrays.items() if name in self.names}

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """As a tensor where the model is; to a GPU through pinned memory."""
        tensor = torch.from_numpy(array)
        if self.model.device.type != "cuda":
            return tensor
        return tensor.pin_memory().to(self.model.device, non_blocking=True)


class PaddedForward(Forward):
    """A batch as a rectangle, the texts' order kept; batches are best made of texts of like length."""

    mode = BatchMode.PADDED

    def __init__(self, inputs: ModelInputs, side: str = "right", selects: bool = True) -> None:
        """
        Args:
            side: where padding goes, `right` or `left`.
            selects: whether rows can be selected before the head reads them, which saves their part of the head.
        """
        self.name = f"padded on the {side}"
        self._inputs = inputs
        self._side = side
        self._selects = selects

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs
        arrays = pad(texts, inputs.padding_id, self._side)
        real = arrays["attention_mask"].astype(bool)
        tensors = inputs.to_tensors(arrays)
        counts = inputs.count_rows(texts)
        match inputs.rows:
            case Rows.ALL:
                return inputs.call(tensors)[inputs.to_device(real)], counts
            case Rows.FIRST:
                output = inputs.call(tensors)
            case Rows.MASKS:
                masks = inputs.to_device(np.flatnonzero(real & (arrays["input_ids"] == inputs.mask_token_id)))

                def select(hidden: Tensor) -> Tensor:
                    return hidden.reshape(1, -1, hidden.shape[-1])[:, masks]

                output = inputs.call(tensors, select) if self._selects else select(inputs.call(tensors))
        return output.reshape(-1, output.shape[-1]), counts


class GroupedForward(Forward):
    """A batch in parts, each of which another forward pass runs by itself."""

    def __init__(self, forward: Forward, mode: BatchMode, group: Callable[[Sequence[TokenizedText]], Groups]) -> None:
        """
        Args:
            forward: runs the parts.
            mode: how the queue is to make batches.
            group: the positions of the texts, those of a part together.
        """
        self._forward = forward
        self._group = group
        self.name = self.mode = mode

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        parts: dict[int, Tensor] = {}
        for group in self._group(texts):
            rows, counts = self._forward.run([texts[position] for position in group])
            parts.update(zip(group, torch.split(rows, counts), strict=True))
        ordered = [parts[position] for position in range(len(texts))]
        return torch.cat(ordered), [len(rows) for rows in ordered]


class _RowSelector:
    """Leaves only some token rows of a module's output, while a selection is set."""

    def __init__(self, module: nn.Module) -> None:
        self.select: Callable[[Tensor], Tensor] | None = None
        module.register_forward_hook(self._hook)

    def _hook(self, _: nn.Module, __: Any, output: Any) -> Any:
        if self.select is not None:
            output.last_hidden_state = self.select(output.last_hidden_state)
        return output


def _selected_module(model: PreTrainedModel, rows: Rows) -> nn.Module:
    """The module whose output the head reads; a pooler in between must get the selected rows too."""
    base = model.base_model
    encoder = getattr(base, "encoder", None)
    if rows is Rows.FIRST and getattr(base, "pooler", None) is not None and isinstance(encoder, nn.Module):
        return encoder
    return base
