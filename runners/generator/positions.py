"""Positions of rows that share a batch: by row where a model counts columns, and where a sequence must start anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel


class RowPositions:
    """Gives a decoder's table of absolute positions a position a row, while set.

    Such models (BART, Marian, Pegasus, M2M100, ...) take the columns of the cache for positions.
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
    """The tables of absolute positions of a model's decoder, each with a hook."""
    decoder: Any = model.get_decoder()  # type: ignore[no-untyped-call]
    for name, module in decoder.named_modules():
        has_table = isinstance(module, nn.Embedding) or isinstance(getattr(module, "weights", None), Tensor)
        if name.rpartition(".")[2] == "embed_positions" and has_table:
            yield RowPositions(module)


class _FilledCache(DynamicCache):
    """A cache that says to have so many columns."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def __len__(self) -> int:
        return 1

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self._length


def find_restart(model: Any) -> int | None:
    """Up to how many tokens the cache of a sequence holds, where `generate` gives it up at some length.

    Phi-3 and its like do at the length where LongRoPE changes, and the sequence is to be computed anew; whether a model
    does is tried. Others go on with what has been computed.
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
