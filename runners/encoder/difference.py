"""How far scores are from other ones."""

from __future__ import annotations

from torch import Tensor

# A usual largest score, in third quartiles of all: that of some hundred normally distributed ones.
_LARGEST = 4
# Scores that no model gives; where all are 0 it keeps the quotient defined.
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
