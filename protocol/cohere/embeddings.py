"""Embeddings in the types of Cohere's API."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.vectors import unit_vectors
from runners.core.errors import InputError

Vectors = NDArray[np.float32]

_MOST = 127
# How far signed and unsigned bytes are apart.
_SHIFT = 128
_BITS = 8


def _scale(vectors: Vectors) -> Vectors:
    """The numbers of the vectors of length 1, times 127, rounded: so they compare as the vectors do."""
    return np.asarray(np.rint(unit_vectors(vectors) * _MOST))


def _pack(vectors: Vectors) -> NDArray[np.uint8]:
    """A bit for each number, set where it is above 0, the first number's highest, as sentence-transformers packs them.

    Raises:
        InputError: the vectors cannot be packed into bytes.
    """
    if vectors.shape[1] % _BITS:
        raise InputError(
            f"embedding_types has bits, but the vectors have {vectors.shape[1]} numbers, which is no multiple of 8",
            "embedding_types",
        )
    return np.packbits(vectors > 0, axis=1)


def _encode(vectors: Vectors) -> Any:
    """The little-endian float32 of each vector, in base64."""
    return (base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors)


# By type: float32 [texts, dimensions] to the value of an answer.
ENCODERS: Mapping[str, Callable[[Vectors], Any]] = {
    "float": lambda vectors: vectors,
    "int8": lambda vectors: _scale(vectors).astype(np.int8),
    "uint8": lambda vectors: (_scale(vectors) + _SHIFT).astype(np.uint8),
    "binary": lambda vectors: (_pack(vectors).astype(np.int16) - _SHIFT).astype(np.int8),
    "ubinary": _pack,
    "base64": _encode,
}
