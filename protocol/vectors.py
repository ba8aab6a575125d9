"""Embeddings of predictions, for the protocols that embed, and their cosines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from runners.core.predictions import Numbers, Prediction


def list_vectors(predictions: Sequence[Prediction]) -> list[NDArray[np.float32]]:
    """The embedding of each text: float32 [dimensions]."""
    return [prediction.main.values for prediction in predictions if isinstance(prediction.main, Numbers)]


def stack_vectors(predictions: Sequence[Prediction]) -> NDArray[np.float32]:
    """The embeddings of all texts: float32 [texts, dimensions]."""
    return np.stack(list_vectors(predictions))


def unit_vectors(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same vectors with length 1: float32 [vectors, dimensions]."""
    # The epsilon is that of torch's `normalize`.
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))


def compare_vectors(predictions: Sequence[Prediction], first: int = 1) -> NDArray[np.float32]:
    """The cosine of each further vector with its counterpart among the first ones, or with the only first one.

    Args:
        first: how many vectors are first ones.

    Returns:
        float32 [further vectors].
    """
    vectors = unit_vectors(stack_vectors(predictions))
    return np.asarray((vectors[:first] * vectors[first:]).sum(axis=1))
