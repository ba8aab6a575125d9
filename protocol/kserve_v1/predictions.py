"""The predictions of V1 as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import repeat
from typing import Any

import orjson

from protocol.class_scores import class_keys, class_rows, vocabulary_entries
from protocol.output_tensors import extra_tensors
from protocol.records import list_records
from protocol.tensors import Tensor
from runners.core.predictions import ClassScores, Numbers, Prediction, Records, Text, VocabularyScores


def render_predictions(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The body of an answer: the predictions, and tensors of what the answers have beside them."""
    payload: dict[str, Any] = {"predictions": map(render_prediction, predictions)}
    if tensors := extra_tensors(predictions):
        payload["outputs"] = [_render_tensor(tensor) for tensor in tensors]
    return payload


def render_prediction(prediction: Prediction) -> Any:
    """A prediction as V1's JSON has it; iterators are lists, and numpy arrays too."""
    match prediction.main:
        case Text(value):
            return value
        case Numbers(values):
            return values if values.ndim else values.item()
        case ClassScores(values) as scores:
            keys = class_keys(values.shape[-1])
            rows = map(dict, map(zip, repeat(keys), class_rows(scores)))
            return next(rows) if values.ndim == 1 else rows
        case Records() as records:
            return list_records(records)
        case VocabularyScores() as scores:
            masks = vocabulary_entries(scores, '{"', '":', '"')
            return ((orjson.Fragment(",".join(entries)) for entries in mask) for mask in masks)


def _render_tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": tensor.flat}
