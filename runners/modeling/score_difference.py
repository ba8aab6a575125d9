"""The relative difference of two sets of scores."""

from __future__ import annotations

import torch
from torch import Tensor

from runners.modeling.matmul_precision import is_reduced

# The largest difference from the stock model's scores, by dtype.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
# The largest of a hundred normally distributed values is about this many times the third quartile of their sizes.
_LARGEST = 4
# Avoids a division by 0 if all scores are 0.
_SMALLEST = 1e-30


def find_tolerance(dtype: torch.dtype) -> float:
    """The largest difference from the stock model's scores; 0 for a dtype that is not served."""
    # TF32 has as many bits of mantissa as float16.
    return TOLERANCES.get(torch.float16 if dtype == torch.float32 and is_reduced() else dtype, 0.0)


def measure_difference(found: Tensor, expected: Tensor) -> float:
    """The largest relative difference of two scores.

    A difference is relative to the size of the expected score, or to the typical size of all scores if that is larger.
    The typical size is four times the third quartile, not the maximum: a few large constants, such as BigBird's -1e6
    for the tokens of a question, must not make other differences look small.

    Args:
        found: scores of any shape and dtype.
        expected: scores of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if found.shape != expected.shape:
        raise ValueError(f"it answers {list(found.shape)} instead of {list(expected.shape)}")
    sizes = expected.float().abs().flatten()
    quartile = sizes.kthvalue(1 + 3 * (len(sizes) - 1) // 4).values
    usual = (_LARGEST * quartile).clamp(max=sizes.max()) if quartile > 0 else sizes.max()
    differences = (found.float() - expected.float()).abs().flatten()
    return float((differences / (sizes.clamp(min=float(usual)) + _SMALLEST)).max())
