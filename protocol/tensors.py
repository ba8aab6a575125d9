"""Tensors of the Open Inference Protocol: from predictions, to and from JSON and the binary extension.

The binary extension is Triton's `binary_tensor_data`: a BYTES element is its length as a 4-byte little-endian number
and then its bytes; all other types are their row-major little-endian bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import InvalidRequestError
from protocol.scores import class_rows, vocabulary_entries
from runners.inference import ClassScores, Numbers, Prediction, Text, VocabularyScores

PADDING = -100
# What stands for a token or mask that a shorter text does not have: a map without classes, so that clients that
# evaluate every element still can.
_NO_SCORES = "{}"
_DATATYPES = {"int64": "INT64", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; `flat` holds its elements in row-major order, strings for BYTES."""

    name: str
    datatype: str
    shape: list[int]
    flat: NDArray[Any] | list[str]

    def to_binary(self) -> bytes:
        """The elements in the binary extension's form."""
        if isinstance(self.flat, list):
            encoded = [element.encode() for element in self.flat]
            return b"".join(struct.pack("<I", len(element)) + element for element in encoded)
        return self.flat.astype(self.flat.dtype.newbyteorder("<")).tobytes()


def output_tensors(predictions: Sequence[Prediction]) -> list[Tensor]:
    """`output-0`, and `offset_mapping` where the predictions carry offsets."""
    offsets = offset_tensor(predictions)
    return [_output_tensor(predictions), *([offsets] if offsets is not None else [])]


def offset_tensor(predictions: Sequence[Prediction]) -> Tensor | None:
    """`offset_mapping`, INT64 [texts, tokens, 2]; None where the predictions carry no offsets."""
    offsets = [prediction.offsets for prediction in predictions if prediction.offsets is not None]
    return _number_tensor("offset_mapping", offsets) if offsets else None


def _output_tensor(predictions: Sequence[Prediction]) -> Tensor:
    outputs = [prediction.output for prediction in predictions]
    name = "output-0"
    match outputs[0]:
        case Text():
            texts = [output.value for output in outputs if isinstance(output, Text)]
            return Tensor(name, "BYTES", [len(texts)], texts)
        case Numbers():
            return _number_tensor(name, [output.values for output in outputs if isinstance(output, Numbers)])
        case ClassScores():
            return _class_tensor(name, [output for output in outputs if isinstance(output, ClassScores)])
        case VocabularyScores():
            return _vocabulary_tensor(name, [output for output in outputs if isinstance(output, VocabularyScores)])


def _number_tensor(name: str, arrays: Sequence[NDArray[Any]]) -> Tensor:
    """Stack arrays of one rank; shorter ones are filled with -100, the index that PyTorch's losses ignore."""
    shape = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
    stacked = np.full([len(arrays), *shape], PADDING, dtype=arrays[0].dtype)
    for row, array in enumerate(arrays):
        own: tuple[int | slice, ...] = (row, *map(slice, array.shape))
        stacked[own] = array
    return Tensor(name, _DATATYPES[stacked.dtype.name], list(stacked.shape), stacked.ravel())


def _class_tensor(name: str, outputs: Sequence[ClassScores]) -> Tensor:
    """KServe prints a row of scores as a Python dict with the class ids as keys: `{0: 0.3332, 1: 0.6668}`."""
    if outputs[0].values.ndim == 1:
        return Tensor(name, "BYTES", [len(outputs)], [row for output in outputs for row in _print_rows(output)])
    length = max(len(output.values) for output in outputs)
    flat: list[str] = []
    for output in outputs:
        rows = _print_rows(output)
        flat += rows + [_NO_SCORES] * (length - len(rows))
    return Tensor(name, "BYTES", [len(outputs), length], flat)


def _print_rows(output: ClassScores) -> list[str]:
    return list(map(str, map(dict, map(enumerate, class_rows(output)))))


def _vocabulary_tensor(name: str, outputs: Sequence[VocabularyScores]) -> Tensor:
    """KServe prints every vocabulary entry as a dict of its own: `{0: '0.0268'}`, [texts, masks, vocabulary]."""
    masks = max(len(output.values) for output in outputs)
    vocabulary = outputs[0].values.shape[1]
    flat: list[str] = []
    for output in outputs:
        for entries in vocabulary_entries(output, "{", ": ", "'"):
            flat += entries
        flat += [_NO_SCORES] * ((masks - len(output.values)) * vocabulary)
    return Tensor(name, "BYTES", [len(outputs), masks, vocabulary], flat)


def read_strings(buffer: memoryview, what: str) -> list[str]:
    """Decode the elements of a BYTES tensor in the binary extension's form.

    Raises:
        InvalidRequestError: a length runs over the end, or an element is not UTF-8.
    """
    strings: list[str] = []
    position = 0
    while position < len(buffer):
        if position + 4 > len(buffer):
            raise InvalidRequestError(f"{what} ends inside the length of element {len(strings)}")
        (length,) = struct.unpack_from("<I", buffer, position)
        position += 4
        if position + length > len(buffer):
            raise InvalidRequestError(
                f"{what} says that element {len(strings)} has {length} bytes, but {len(buffer) - position} are left"
            )
        try:
            strings.append(str(buffer[position : position + length], "utf-8"))
        except UnicodeDecodeError as error:
            raise InvalidRequestError(f"element {len(strings)} of {what} is not UTF-8") from error
        position += length
    return strings


def flatten(data: Sequence[str | list[str]], shape: Sequence[int], what: str) -> list[str]:
    """Strings given flat, or nested as the shape is, in row-major order.

    Raises:
        InvalidRequestError: the nesting is not that of the shape.
    """
    flat = [element for element in data if isinstance(element, str)]
    if len(flat) == len(data):
        return flat
    rows = [element for element in data if not isinstance(element, str)]
    if flat or [len(rows), *{len(row) for row in rows}] != list(shape):
        raise InvalidRequestError(f"{what} is nested, but not as the shape {list(shape)} says")
    return [element for row in rows for element in row]


def count_elements(shape: Sequence[int]) -> int:
    """How many elements a tensor of this shape has; `[]` is one."""
    return math.prod(shape)
