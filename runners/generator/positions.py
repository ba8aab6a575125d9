"""Absolute positions of rows that share a batch, and lengths at which a model computes a sequence anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


class RowPositions:
    """Replaces the output of a decoder's table of absolute positions by that of `positions`, while these are set.

    Models with such tables (BART, Marian, Pegasus, M2M100, ...) use the columns of the cache as positions.

    Attributes:
        positions: [rows, columns].
    """

    def __init__(self, module: nn.Module) -> None:
        self.positions: Tensor | None = None
        module.register_forward_hook(self._hook)

    def _hook(self, module: Any, _: Any, output: Tensor) -> Tensor:
        if self.positions is None:
            return output
        table: Tensor = module.weight if isinstance(module, nn.Embedding) else module.weights
        return table[self.positions + getattr(module, "offset", 0)].to(output.dtype)


def find_row_positions(model: PreTrainedModel) -> Iterator[RowPositions]:
    """Hooks of all tables of absolute positions of a model's decoder."""
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    for name, module in decoder.named_modules():
        has_table = isinstance(module, nn.Embedding) or isinstance(getattr(module, "weights", None), Tensor)
        if name.rpartition(".")[2] == "embed_positions" and has_table:
            yield RowPositions(module)


class _FilledCache(DynamicCache):
    """A cache that reports a number of columns."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


def find_restart(model: Any) -> int | None:
    """The number of tokens above which `generate` drops a sequence's cache and computes it anew; None if it never does.

    Phi-3 and similar models do so at the length where LongRoPE changes. Whether a model does is tested.
    """
    limit = getattr(model.config, "original_max_position_embeddings", None)
    if not isinstance(limit, int):
        return None
    ids = torch.zeros(1, limit + 1, dtype=torch.long)
    try:
        inputs = model.prepare_inputs_for_generation(
            ids, past_key_values=_FilledCache(limit), attention_mask=torch.ones_like(ids), next_sequence_length=1
        )
    except Exception:
        return None
    return limit if inputs.get("past_key_values") is None else None
