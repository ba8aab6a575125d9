"""A model whose forward pass returns at once: what is left is the work around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runners.encoder import loader
from runners.encoder.batch_mode import BatchMode
from runners.encoder.forward import Forward
from runners.encoder.sequences import TokenizedText

CLASSES = 2


class NullForward(Forward):
    """A forward pass that scores each text zero."""

    name = "null"
    mode = BatchMode.PACKED

    def run(self, texts: Sequence[TokenizedText]) -> tuple[Tensor, list[int]]:
        return torch.zeros(len(texts), CLASSES), [1] * len(texts)


def replace_forward() -> None:
    """Let each model that is loaded from now on have this forward pass."""
    loader._prepare_forward = _prepare


def _prepare(
    checkpoint: object, samples: object, input_names: object, max_batch_tokens: int, max_length: int
) -> tuple[Forward, int]:
    return NullForward(), max_batch_tokens
