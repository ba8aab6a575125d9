"""Rotary position embeddings that depend on the longest text of a batch, as `transformers` computes them.

LongRoPE uses another set of factors above the length that a model was first trained for. Dynamic NTK scaling grows with
the longest text above the model's length, and keeps the scale it has grown to. An answer must depend on neither: it
must not change with the other texts of its batch, or of earlier batches.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class LengthDependentEmbedding:
    """One rotary embedding whose frequencies depend on the largest position of a call.

    Attributes:
        layer_type: the kind of layers that it serves, if its module serves several kinds; None if it serves all.
        is_dynamic: True for dynamic NTK scaling, False for LongRoPE.
    """

    module: Any
    layer_type: str | None
    is_dynamic: bool

    @property
    def limit(self) -> int:
        """Up to this many tokens all texts get the same frequencies."""
        if self.is_dynamic:
            return int(self.module.original_max_seq_len)
        return int(self._parameters["original_max_position_embeddings"])

    def reset(self) -> None:
        """Undo the growth of dynamic scaling in earlier batches."""
        if not self.is_dynamic:
            return
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        setattr(self.module, f"{prefix}inv_freq", getattr(self.module, f"{prefix}original_inv_freq"))
        setattr(self.module, f"{prefix}max_seq_len_cached", self.module.original_max_seq_len)

    @contextlib.contextmanager
    def lowered(self, limit: int) -> Iterator[None]:
        """Lower the limit within the block, so that short texts exceed it."""
        module, config = self.module, self.module.config
        holders: list[tuple[Any, str]] = []
        if self.is_dynamic:
            holders = [(module, "original_max_seq_len"), (config, "max_position_embeddings")]
        elif hasattr(config, "original_max_position_embeddings"):
            # Phi-3 has it here, and it wins over the rope parameters.
            holders = [(config, "original_max_position_embeddings")]
        stored = [getattr(holder, name) for holder, name in holders]
        parameters, limit_key = self._parameters, "original_max_position_embeddings"
        stored_limit = parameters.get(limit_key)
        try:
            for holder, name in holders:
                setattr(holder, name, limit)
            if not self.is_dynamic:
                parameters[limit_key] = limit
            self.reset()
            yield
        finally:
            for (holder, name), value in zip(holders, stored, strict=True):
                setattr(holder, name, value)
            if not self.is_dynamic:
                parameters[limit_key] = stored_limit
            self.reset()

    @property
    def _parameters(self) -> dict[str, Any]:
        parameters: dict[str, Any] = self.module.config.rope_parameters
        return parameters if self.layer_type is None else parameters[self.layer_type]


class LengthDependentRope:
    """All rotary embeddings of a model, or of a part of it, that depend on the longest text of a batch."""

    def __init__(self, part: nn.Module) -> None:
        self._embeddings = list(find_length_dependent(part))

    @property
    def limit(self) -> int | None:
        """Up to this many tokens all texts get the same frequencies; None where they always do."""
        return min((embedding.limit for embedding in self._embeddings), default=None)

    def reset(self) -> None:
        """Undo the growth of dynamic scaling in earlier batches."""
        for embedding in self._embeddings:
            embedding.reset()

    @contextlib.contextmanager
    def lowered(self, limit: int) -> Iterator[None]:
        """Lower the limit of all embeddings within the block, so that short texts exceed it."""
        with contextlib.ExitStack() as stack:
            for embedding in self._embeddings:
                stack.enter_context(embedding.lowered(limit))
            yield


def find_length_dependent(model: nn.Module) -> Iterator[LengthDependentEmbedding]:
    """The length-dependent rotary embeddings of a model, or of a part of it."""
    for module in model.modules():
        types: Any = getattr(module, "rope_type", None)
        for layer_type, name in types.items() if isinstance(types, dict) else [(None, types)]:
            if isinstance(name, str) and (name == "longrope" or "dynamic" in name):
                yield LengthDependentEmbedding(module, layer_type, name != "longrope")
