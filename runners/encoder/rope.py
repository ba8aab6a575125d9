"""Rotary positions that depend on the longest text of a batch, as `transformers` computes them.

LongRoPE takes other factors above the length that a model was first trained for. Dynamic scaling grows with the longest
text above the model's length, and keeps what it has grown to. The answer to a text must depend on neither.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel


class LengthDependentRope:
    """The rotary embeddings of a model that depend on the longest text of a batch.

    Attributes:
        limit: up to how many tokens all texts get the same positions; None where there are no such embeddings.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._dynamic: list[tuple[nn.Module, str]] = []
        limits = []
        for module, rope_type, prefix, parameters in _find_embeddings(model):
            if rope_type == "longrope":
                limits.append(int(parameters["original_max_position_embeddings"]))
            elif "dynamic" in rope_type:
                limits.append(int(module.original_max_seq_len))
                self._dynamic.append((module, prefix))
        self.limit: int | None = min(limits, default=None)

    def reset(self) -> None:
        """Forget what earlier batches have made dynamic scaling grow to."""
        for module, prefix in self._dynamic:
            setattr(module, f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"))
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def _find_embeddings(model: PreTrainedModel) -> Iterator[tuple[Any, str, str, dict[str, Any]]]:
    """Module, type, prefix of its attributes, and parameters; a module may serve several kinds of layers."""
    for module in model.modules():
        rope_type = getattr(module, "rope_type", None)
        if isinstance(rope_type, str):
            yield module, rope_type, "", module.config.rope_parameters  # type: ignore[union-attr, misc]
        elif isinstance(rope_type, dict):
            for kind, name in rope_type.items():
                yield module, name, f"{kind}_", module.config.rope_parameters[kind]  # type: ignore[union-attr, misc, index]
