"""The forward pass of a padded batch, and what all forward passes share.

There are four kinds, the fastest first. A batch is packed without padding (packing.py). If the model does not support
that, the batch is padded. If padding changes answers, a batch has texts of one length only. If the other rows of a
batch change answers too, each text runs alone. The kind is selected by probing at load (forward_selection.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from runners.encoder.batch_mode import BatchMode
from runners.encoder.pooled_head import RowSelector, TokenPooling, pool_in_parts, take_tokens
from runners.encoder.segments import Segments
from runners.encoder.sequences import TokenizedText
from runners.encoder.transfers import upload
from runners.modeling.attention import SparseAttention
from runners.modeling.length_dependent_rope import LengthDependentRope

Groups = list[list[int]]

# The array of a batch that says which slots, text by text, are read.
_READ_SLOTS = "read_slots"


class TokenSelection(Enum):
    """Which tokens' scores a task reads: all, those of the first token, those of the mask tokens, or one pooled row."""

    ALL = auto()
    FIRST = auto()
    MASKS = auto()
    POOLED = auto()


class Forward(ABC):
    """A forward pass over a batch of texts.

    Attributes:
        name: its name in the log.
        mode: which texts may share a batch.
        is_variant: whether it is a faster variant of the forward pass that is tried next.
    """

    name: str
    mode: BatchMode
    is_variant = False

    @abstractmethod
    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """Run a batch.

        Returns:
            The scores of the selected tokens of all texts, [rows, classes], and how many rows belong to each text.
        """

    def count_padding(self, texts: Sequence[TokenizedText]) -> int:
        """How many tokens of padding `run` computes beside those of the texts."""
        return 0

    def run_checked(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        """Run a batch, and check that the model does what this forward pass relies on.

        Raises:
            ValueError: it does not.
        """
        return self.run(texts)

    def attach(self) -> None:  # noqa: B027
        """Prepare the model for this forward pass."""

    def detach(self) -> None:  # noqa: B027
        """Undo `attach`."""


def count_padding(texts: Sequence[TokenizedText]) -> int:
    """How many tokens `pad` adds."""
    lengths = [len(text.input_ids) for text in texts]
    return max(lengths) * len(lengths) - sum(lengths)


def count_rows(texts: Sequence[TokenizedText], selection: TokenSelection, mask_token_id: int | None) -> list[int]:
    """How many rows of scores each text has."""
    match selection:
        case TokenSelection.ALL:
            return [len(text.input_ids) for text in texts]
        case TokenSelection.FIRST | TokenSelection.POOLED:
            return [1] * len(texts)
        case TokenSelection.MASKS:
            return [int((text.input_ids == mask_token_id).sum()) for text in texts]


def pad(texts: Sequence[TokenizedText], padding_id: int, side: str) -> dict[str, NDArray[np.int64]]:
    """Pad texts on the `right` or the `left`.

    Returns:
        `input_ids`, `attention_mask` and `token_type_ids`: int64 [texts, tokens of the longest text] each.
    """
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
    """Group texts of equal length: their positions."""
    groups: dict[int, list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(len(text.input_ids), []).append(position)
    return list(groups.values())


def group_above(limit: int, texts: Sequence[TokenizedText]) -> Groups:
    """Group all texts up to `limit` tokens, and longer texts of equal length: their positions."""
    groups = group_by_length(texts)
    short = sorted(chain.from_iterable(group for group in groups if len(texts[group[0]].input_ids) <= limit))
    longer = [group for group in groups if len(texts[group[0]].input_ids) > limit]
    return [short, *longer] if short else longer


def group_singly(texts: Sequence[TokenizedText]) -> Groups:
    """Each text alone: their positions."""
    return [[position] for position in range(len(texts))]


class ModelInputs:
    """Calls a model: passes the tensors that it takes, and finds its scores in its output."""

    def __init__(
        self,
        model: PreTrainedModel,
        names: frozenset[str],
        selection: TokenSelection,
        mask_token_id: int | None,
        padding_id: int,
        pooling: TokenPooling | None = None,
    ) -> None:
        """
        Args:
            names: which of input_ids, attention_mask and token_type_ids the model gets.
            selection: which tokens' scores are read.
            padding_id: token id of the padding.
            pooling: pools the scores of a text's tokens, for `TokenSelection.POOLED`.
        """
        self.model = model
        self.names = names
        self.selection = selection
        self.mask_token_id = mask_token_id
        self.padding_id = padding_id
        # A 16-bit model may have some float32 weights.
        floating = (weight.dtype for weight in model.parameters() if weight.is_floating_point())
        self.dtype = min(floating, key=lambda dtype: dtype.itemsize)
        # Only generation uses the cache of a decoder.
        model.config.get_text_config().use_cache = False
        self._selector: RowSelector | None = None
        if selection is not TokenSelection.ALL:
            self._selector = RowSelector(_selected_module(model, selection))
        self._pooling = pooling
        self._sparse_attention = SparseAttention(model)
        self.rope = LengthDependentRope(model)

    def count_rows(self, texts: Sequence[TokenizedText]) -> list[int]:
        return count_rows(texts, self.selection, self.mask_token_id)

    def call(self, tensors: dict[str, Tensor], select: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Run the model.

        Args:
            tensors: int64 [texts, tokens] each.
            select: selects rows of the last hidden state, [texts, tokens, hidden], before the model's head runs.

        Returns:
            The output of the model's head, or the last hidden state if it has none: [texts, tokens, classes], or
            [texts, classes] if the head reads one token. The two outputs of a head for question answering are stacked
            as classes.

        Raises:
            ValueError: the model has neither of these outputs.
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
        # Perceiver returns a row for each of its positions.
        return scores[:, :tokens] if self.selection is not TokenSelection.FIRST and select is None else scores

    def pool(
        self, tensors: dict[str, Tensor], segments: Segments, slots: Tensor | None = None, in_parts: bool = True
    ) -> Tensor:
        """Run the model, and pool the scores of each text's tokens.

        Args:
            tensors: int64 [texts, tokens] each, or [1, tokens of all texts].
            segments: which of the tokens belong to which text.
            slots: int64 [tokens], the slots of the tokens among all of the tensors; None if the tokens come first.
            in_parts: whether the model's head runs on a few rows at a time.

        Returns:
            float32 [texts, classes].
        """
        pooling, selector = self._pooling, self._selector
        assert pooling is not None
        assert selector is not None
        if in_parts:
            return pool_in_parts(self.model, selector, pooling, partial(self.call, tensors), tensors, segments, slots)
        scores = take_tokens(self.call(tensors), slots)
        pooled = pooling.start(len(segments.counts), scores)
        pooling.add(pooled, scores, segments)
        return pooling.finish(pooled)

    def run_alone(self, text: TokenizedText) -> Tensor:
        """The scores of one text that runs alone without padding, by the stock model: [rows, classes].

        Raises:
            ValueError: the model does not return a row per token.
        """
        tensors = self.upload(self.select_taken(pad([text], self.padding_id, "right")))
        tokens = len(text.input_ids)
        if self.selection is TokenSelection.POOLED:
            return self.pool(tensors, Segments([tokens], self.model.device), in_parts=False)
        output = self.call(tensors)
        expected = (1,) if self.selection is TokenSelection.FIRST else (1, tokens)
        if output.shape[:-1] != expected:
            raise ValueError(f"it answers a text of {tokens} tokens with the shape {list(output.shape)}")
        match self.selection:
            case TokenSelection.ALL:
                return output[0]
            case TokenSelection.FIRST:
                return output
            case _:
                return output[0, torch.from_numpy(np.flatnonzero(text.input_ids == self.mask_token_id))]

    def select_taken(self, arrays: Mapping[str, NDArray[np.int64]]) -> dict[str, NDArray[np.int64]]:
        """The arrays that the model takes."""
        return {name: array for name, array in arrays.items() if name in self.names}

    def upload(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
        """The arrays as tensors on the model's device, in one copy."""
        return upload(arrays, self.model.device)


class PaddedForward(Forward):
    """Runs a batch as a padded rectangle; best for texts of similar length."""

    mode = BatchMode.PADDED

    def __init__(self, inputs: ModelInputs, side: str = "right", selects: bool = True) -> None:
        """
        Args:
            side: where padding goes, `right` or `left`.
            selects: whether tokens are selected before the model's head runs, so that it runs on fewer rows.
        """
        self.name = f"padded on the {side}"
        self._inputs = inputs
        self._side = side
        self._selects = selects

    def count_padding(self, texts: Sequence[TokenizedText]) -> int:
        return count_padding(texts)

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        inputs = self._inputs
        arrays = pad(texts, inputs.padding_id, self._side)
        taken = inputs.select_taken(arrays)
        if inputs.selection is TokenSelection.FIRST:
            output = inputs.call(inputs.upload(taken))
        else:
            is_read = arrays["attention_mask"].astype(bool)
            if inputs.selection is TokenSelection.MASKS:
                is_read &= arrays["input_ids"] == inputs.mask_token_id
            # Indices, since the CPU would wait for a GPU to count the slots of a mask.
            tensors = inputs.upload({**taken, _READ_SLOTS: np.flatnonzero(is_read)})
            output = self._read(tensors.pop(_READ_SLOTS), tensors, texts)
        return output.reshape(-1, output.shape[-1]), inputs.count_rows(texts)

    def _read(self, slots: Tensor, tensors: dict[str, Tensor], texts: Sequence[TokenizedText]) -> Tensor:
        """The scores of the slots that are read, or of pooled texts: [rows, classes] or [1, rows, classes]."""
        inputs = self._inputs
        if inputs.selection is TokenSelection.POOLED:
            segments = Segments([len(text.input_ids) for text in texts], inputs.model.device)
            return inputs.pool(tensors, segments, slots, self._selects)

        def select(hidden: Tensor) -> Tensor:
            return take_tokens(hidden, slots)[None]

        selects = self._selects and inputs.selection is TokenSelection.MASKS
        return inputs.call(tensors, select) if selects else select(inputs.call(tensors))


class GroupedForward(Forward):
    """Splits a batch into groups, and runs each with another forward pass."""

    def __init__(self, forward: Forward, mode: BatchMode, group: Callable[[Sequence[TokenizedText]], Groups]) -> None:
        """
        Args:
            forward: runs the groups.
            mode: how the queue makes batches.
            group: groups the texts of a batch, by their positions.
        """
        self._forward = forward
        self._group = group
        self.name = self.mode = mode

    def count_padding(self, texts: Sequence[TokenizedText]) -> int:
        return sum(self._forward.count_padding([texts[position] for position in group]) for group in self._group(texts))

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        groups = self._group(texts)
        if len(groups) == 1:
            return self._forward.run([texts[position] for position in groups[0]])
        parts: dict[int, Tensor] = {}
        for group in groups:
            rows, counts = self._forward.run([texts[position] for position in group])
            parts.update(zip(group, torch.split(rows, counts), strict=True))
        ordered = [parts[position] for position in range(len(texts))]
        return torch.cat(ordered), [len(rows) for rows in ordered]


def _selected_module(model: PreTrainedModel, selection: TokenSelection) -> nn.Module:
    """The module whose output the model's head reads; with a pooler in between, the module before the pooler."""
    base = model.base_model
    encoder = getattr(base, "encoder", None)
    if (
        selection is TokenSelection.FIRST
        and getattr(base, "pooler", None) is not None
        and isinstance(encoder, nn.Module)
    ):
        return encoder
    return base
