"""Rotary embeddings by the length of each row, where `transformers` uses the longest row's length for all."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from runners.modeling.length_dependent_rope import LengthDependentEmbedding, LengthDependentRope


class RowRope(LengthDependentRope):
    """Makes the rotary embeddings of a decoder, or of an encoder, depend on `lengths`.

    A stock embedding depends on the largest position of its call. It is called once for all rows with the same
    frequencies, with an additional column that has the last position of these rows; that column is then dropped.

    Attributes:
        lengths: number of tokens of each row, [rows], including those that are computed later; None for the stock
            behaviour.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__(part)
        self.lengths: Sequence[int] | None = None
        by_module: dict[Any, dict[str | None, LengthDependentEmbedding]] = {}
        for embedding in self._embeddings:
            by_module.setdefault(embedding.module, {})[embedding.layer_type] = embedding
        for module, embeddings in by_module.items():
            module.forward = _by_row(self, module.forward, embeddings)

    @contextlib.contextmanager
    def at(self, lengths: Sequence[int]) -> Iterator[None]:
        """Use these lengths within the context."""
        self.lengths = lengths
        try:
            yield
        finally:
            self.lengths = None


def _by_row(rope: RowRope, stock: Any, embeddings: dict[str | None, LengthDependentEmbedding]) -> Any:
    def forward(x: Tensor, position_ids: Tensor, layer_type: str | None = None) -> Any:
        options = {} if layer_type is None else {"layer_type": layer_type}
        embedding = embeddings.get(layer_type)
        if rope.lengths is None or embedding is None:
            return stock(x, position_ids, **options)
        groups = _group(embedding, rope.lengths)
        positions = position_ids.expand(*position_ids.shape[:-2], len(rope.lengths), -1)
        outputs = []
        for rows in groups:
            last = max(rope.lengths[row] for row in rows) - 1
            index = torch.tensor(rows, device=positions.device)
            selected = positions if len(groups) == 1 else positions.index_select(-2, index)
            extended = torch.cat([selected, torch.full_like(selected[..., :1], last)], -1)
            embedding.reset()
            outputs.append(stock(x, extended, **options))
        order = torch.tensor([row for rows in groups for row in rows], device=positions.device).argsort()
        if isinstance(outputs[0], Tensor):
            return _join(outputs, order)
        return tuple(_join(parts, order) for parts in zip(*outputs, strict=True))

    return forward


def _group(embedding: LengthDependentEmbedding, lengths: Sequence[int]) -> list[list[int]]:
    """The rows, grouped by their frequencies."""
    groups: dict[int, list[int]] = {}
    for row, length in enumerate(lengths):
        beyond = length > embedding.limit
        groups.setdefault(length if beyond and embedding.is_dynamic else int(beyond), []).append(row)
    return list(groups.values())


def _join(parts: Sequence[Tensor], order: Tensor) -> Tensor:
    """The embeddings of all rows in their order, [..., rows, columns, size], without the additional column."""
    return torch.cat([part[..., :-1, :] for part in parts], -3).index_select(-3, order)
