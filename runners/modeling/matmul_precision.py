"""The precision of float32 matrix products on a GPU: float32 itself, or TF32.

A GPU of compute capability 8.0 or above rounds the factors of a product to TF32, which has 10 bits of mantissa instead
of 23, and sums in float32: https://docs.pytorch.org/docs/stable/notes/cuda.html#tensorfloat-32-tf32-on-ampere-and-later
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch

from runners.modeling.dtype_selection import AMPERE, read_capability
from runners.modeling.dtypes import name_dtype

logger = logging.getLogger(__name__)

_HIGHEST = "highest"


def set_matmul_precision(precision: str, device: torch.device, dtype: torch.dtype) -> None:
    """Set the precision for all models of this process, or warn that it has no effect on a model.

    On a CPU nothing is set: oneDNN would compute in bfloat16 there.

    Args:
        precision: the argument `matmul_precision`.
        device: of the model that is loaded.
        dtype: of that model.
    """
    capability = read_capability(device)
    if capability is not None:
        _set(precision)
    if precision == _HIGHEST:
        return
    if capability is None:
        logger.warning("matmul_precision has no effect on a CPU")
    elif capability < AMPERE:
        logger.warning("matmul_precision has no effect on this GPU, which has no TF32")
    elif dtype != torch.float32:
        logger.warning("matmul_precision has no effect in %s", name_dtype(dtype))


def is_reduced() -> bool:
    """Whether float32 matrix products are rounded."""
    return torch.get_float32_matmul_precision() != _HIGHEST


@contextlib.contextmanager
def exact_matmuls() -> Iterator[None]:
    """Compute float32 matrix products in float32 within the block, those of other models' turns too."""
    if not is_reduced():
        yield
        return
    precision = torch.get_float32_matmul_precision()
    _set(_HIGHEST)
    try:
        yield
    finally:
        _set(precision)


def _set(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    # PyTorch rounds convolutions by default, even if products of matrices are exact.
    torch.backends.cudnn.allow_tf32 = precision != _HIGHEST
