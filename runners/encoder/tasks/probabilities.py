"""Softmax and sigmoid of logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def softmax(logits: NDArray[np.float32], axis: int = -1) -> NDArray[np.float32]:
    """float32, in the shape of the logits; sums along the axis are 1."""
    exponents = np.exp(logits - logits.max(axis=axis, keepdims=True))
    probabilities: NDArray[np.float32] = exponents / exponents.sum(axis=axis, keepdims=True)
    return probabilities


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32, in the shape of the logits."""
    # Written with tanh, which cannot overflow.
    probabilities: NDArray[np.float32] = 0.5 * (1.0 + np.tanh(0.5 * logits))
    return probabilities
