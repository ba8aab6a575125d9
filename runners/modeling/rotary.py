"""Rotary embeddings that depend on the longest text of a batch, as `transformers` computes them.

LongRoPE takes other factors above the length that a model was first trained for. Dynamic scaling grows with the longest
text above the model's length, and keeps what it has grown to. Answers must depend on neither.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True, slots=True)
class LengthDependentEmbedding:
    """A rotary embedding whose frequencies depend on the largest position of a call.

    Attributes:
        layer_type: the kind of layers that it serves, where a module serves several; None where it serves all.
        is_dynamic: dynamic scaling, which grows with the length; else LongRoPE, which has two sets of factors.
    """

    module: Any
    layer_type: str | None
    is_dynamic: bool

    @property
    def limit(self) -> int:
        """Up to how many tokens all texts get the same frequencies."""
        if self.is_dynamic:
            return int(self.module.original_max_seq_len)
        return int(self._parameters["original_max_position_embeddings"])

    def reset(self) -> None:
        """Forget what earlier batches have made dynamic scaling grow to."""
        if not self.is_dynamic:
            return
        prefix = "" if self.layer_type is None else f"{self.layer_type}_"
        setattr(self.module, f"{prefix}inv_freq", getattr(self.module, f"{prefix}original_inv_freq"))
        setattr(self.module, f"{prefix}max_seq_len_cached", self.module.original_max_seq_len)

    @contextlib.contextmanager
    def lowered(self, limit: int) -> Iterator[None]:
        """Another limit meanwhile, so that it can be crossed by short texts."""
        module, config = self.module, self.module.config
        holders: list[tuple[Any, str]] = []
        if self.is_dynamic:
            holders = [(module, "original_max_seq_len"), (config, "max_position_embeddings")]
        elif hasattr(config, "original_max_position_embeddings"):
            # Phi-3's, which wins over that of the parameters.
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


def find_length_dependent(model: nn.Module) -> Iterator[LengthDependentEmbedding]:
    """All of a model, or of a part of it."""
    for module in model.modules():
        types: Any = getattr(module, "rope_type", None)
        for layer_type, name in types.items() if isinstance(types, dict) else [(None, types)]:
            if isinstance(name, str) and (name == "longrope" or "dynamic" in name):
                yield LengthDependentEmbedding(module, layer_type, name != "longrope")
