"""How far scores are from other ones."""

from __future__ import annotations

import torch
from torch import Tensor

# How far scores of a model in a dtype may be from those of the stock model.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# The largest of a hundred normally distributed scores is about so many times their third quartile.
_LARGEST = 4
# Keeps the quotient defined where all scores are 0.
_SMALLEST = 1e-30


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two scores, relative to the expected one and to what is usual among them.

    A few scores that are constants, such as the -1e6 of BigBird for tokens of a question, do not make the others'
    differences look small.

    Raises:
        ValueError: the shapes are not the same.
    """
    if found.shape != expected.shape:
        raise ValueError(f"it answers {list(found.shape)} instead of {list(expected.shape)}")
    sizes = expected.float().abs().flatten()
    quartile = sizes.kthvalue(1 + 3 * (len(sizes) - 1) // 4).values
    usual = (_LARGEST * quartile).clamp(max=sizes.max()) if quartile > 0 else sizes.max()
    differences = (found.float() - expected.float()).abs().flatten()
    return float((differences / (sizes.clamp(min=float(usual)) + _SMALLEST)).max())
