"""Predictions as tensors, which the Open Inference Protocol answers with and V1 adds to its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.class_scores import class_rows, vocabulary_entries
from protocol.tensors import BYTES, Tensor
from runners.core.predictions import (
    MAIN,
    OFFSETS,
    ClassScores,
    Numbers,
    OutputSpec,
    Prediction,
    Records,
    Text,
    VocabularyScores,
)

# The protocol's names of outputs, where they differ from the runners'.
_WIRE_NAMES = {MAIN: "output-0", OFFSETS: "offset_mapping"}
_OUTPUT_NAMES = {name: output for output, name in _WIRE_NAMES.items()}
# The elements for missing tokens and masks of shorter texts: the index that PyTorch's losses ignore, no score, no name.
_PADDING: dict[str, int | float | str] = {"INT64": -100, "FP32": 0.0, BYTES: ""}
# A map without classes, so that clients can evaluate every element.
_NO_SCORES = "{}"
# The objects that one call puts into a list.
_AT_ONCE = 2**16
# By numpy's name of a type.
_DATATYPES = {"int64": "INT64", "float32": "FP32", "object": BYTES, "str": BYTES}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor in the protocol's metadata; -1 is a dimension that varies."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def wire_name(output: str) -> str:
    """The protocol's name of an output."""
    return _WIRE_NAMES.get(output, output)


def output_name(name: str) -> str:
    """The runners' name of an output of the protocol."""
    return _OUTPUT_NAMES.get(name, name)


def describe_output(spec: OutputSpec) -> TensorSpec:
    """The tensor of an output; scores are printed as maps, each an element."""
    if spec.kind is ClassScores:
        return TensorSpec(wire_name(spec.name), BYTES, spec.shape[:-1])
    datatype = BYTES if spec.kind is VocabularyScores else _DATATYPES[spec.dtype.__name__]
    return TensorSpec(wire_name(spec.name), datatype, spec.shape)


def build_tensor(output: str, predictions: Sequence[Prediction], columns: int = 0) -> Tensor:
    """The tensor of an output.

    Args:
        output: the runners' name of it, or that of a column of records.
        columns: the least number of places in tensors that have a place for each token.
    """
    name = wire_name(output)
    records = [prediction.main for prediction in predictions if isinstance(prediction.main, Records)]
    if records and output in records[0].columns:
        return _stack(name, [each.columns[output] for each in records])
    if output == OFFSETS:
        return _stack(name, [prediction.arrays[output] for prediction in predictions])
    if output != MAIN:
        return _stack(name, [prediction.arrays[output] for prediction in predictions], columns)
    outputs = [prediction.main for prediction in predictions]
    match outputs[0]:
        case Text():
            texts = [output.value for output in outputs if isinstance(output, Text)]
            return Tensor(name, BYTES, [len(texts)], texts)
        case Numbers():
            values = [output.values for output in outputs if isinstance(output, Numbers)]
            return _stack(name, values, columns, token_axis=1)
        case ClassScores():
            return _class_tensor(name, [output for output in outputs if isinstance(output, ClassScores)], columns)
        case VocabularyScores():
            return _vocabulary_tensor(name, [output for output in outputs if isinstance(output, VocabularyScores)])
    raise AssertionError("records have no main tensor")


def extra_tensors(predictions: Sequence[Prediction]) -> list[Tensor]:
    """The tensors beside the answer: `offset_mapping`, INT64 [texts, tokens, 2], and then the others by name."""
    names = sorted(predictions[0].outputs.keys() - {MAIN}, key=lambda name: (name != OFFSETS, name))
    return [build_tensor(name, predictions) for name in names]


def classification_tensor(
    name: str, scores: Sequence[NDArray[np.float32]], k: int, class_name: Callable[[int], str], columns: int = 0
) -> Tensor:
    """Triton's classification extension: the `k` highest scores, each printed as `value:index:label`.

    https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_classification.md

    Args:
        scores: float32 [..., classes] each.
        columns: as for `build_tensor`.
    """
    printed = []
    for values in scores:
        best = np.argsort(-values, axis=-1, kind="stable")[..., :k]
        top = np.take_along_axis(values, best, axis=-1)
        rows = zip(top.ravel().tolist(), best.ravel().tolist(), strict=True)
        strings = [f"{value:f}:{index}:{class_name(index)}" for value, index in rows]
        printed.append(np.array(strings, dtype=object).reshape(best.shape))
    return _stack(name, printed, columns)


def _stack(name: str, arrays: Sequence[NDArray[Any]], columns: int = 0, token_axis: int = 0) -> Tensor:
    """Stack arrays of one rank; shorter ones are padded."""
    shape = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
    # A single number of a text has no places for tokens.
    if columns and shape:
        shape[token_axis] = max(shape[token_axis], columns)
    datatype = _datatype(arrays[0].dtype)
    if all(list(array.shape) == shape for array in arrays):
        stacked = np.stack(arrays)
    else:
        stacked = np.full([len(arrays), *shape], _PADDING[datatype], dtype=arrays[0].dtype)
        for row, array in enumerate(arrays):
            region: tuple[int | slice, ...] = (row, *map(slice, array.shape))
            stacked[region] = array
    flat = stacked.ravel()
    return Tensor(name, datatype, list(stacked.shape), _list_elements(flat) if datatype == BYTES else flat)


@cache
def _datatype(dtype: np.dtype[Any]) -> str:
    """Kept, because numpy makes a type's name anew each time."""
    return _DATATYPES[dtype.name]


def _list_elements(flat: NDArray[Any]) -> list[str]:
    """The objects of an array as a list; no call takes more than some ms."""
    elements: list[str] = []
    for start in range(0, len(flat), _AT_ONCE):
        elements += flat[start : start + _AT_ONCE].tolist()
    return elements


def _class_tensor(name: str, outputs: Sequence[ClassScores], columns: int) -> Tensor:
    """KServe prints a row of scores as a Python dict with the class ids as keys: `{0: 0.3332, 1: 0.6668}`."""
    if outputs[0].values.ndim == 1:
        return Tensor(name, BYTES, [len(outputs)], [row for output in outputs for row in _print_rows(output)])
    length = max(columns, *(len(output.values) for output in outputs))
    flat: list[str] = []
    for output in outputs:
        rows = _print_rows(output)
        flat += rows + [_NO_SCORES] * (length - len(rows))
    return Tensor(name, BYTES, [len(outputs), length], flat)


def _print_rows(output: ClassScores) -> list[str]:
    return list(map(str, map(dict, map(enumerate, class_rows(output)))))


def _vocabulary_tensor(name: str, outputs: Sequence[VocabularyScores]) -> Tensor:
    """KServe prints every vocabulary entry as a dict of its own: `{0: '0.0268'}`, [texts, masks, vocabulary]."""
    masks = max(len(output.values) for output in outputs)
    vocabulary = outputs[0].values.shape[1]
    flat: list[str] = []
    for output in outputs:
        for mask in vocabulary_entries(output, "{", ": ", "'"):
            for entries in mask:
                flat += entries
        flat += [_NO_SCORES] * ((masks - len(output.values)) * vocabulary)
    return Tensor(name, BYTES, [len(outputs), masks, vocabulary], flat)
