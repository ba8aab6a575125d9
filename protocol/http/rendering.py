"""Answers made of predictions, rendered in a thread where they are large."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, TypeVar

from starlette.responses import Response

from protocol.http.body import json_response
from protocol.http.offload import offload_large
from runners.core.predictions import Prediction, Records, Text
from runners.core.request_record import current_record

T = TypeVar("T")

# Rendering takes 0.1 to 0.5 us a number; more numbers would block the event loop for some ms.
_RENDER_INLINE = 10_000
# The value of a record takes as long to render as this many numbers.
_NUMBERS_A_VALUE = 4
# This many characters take as long to render as one number.
CHARACTERS_A_NUMBER = 64


async def render(
    renderer: Callable[[Sequence[Prediction]], Any], predictions: Sequence[Prediction], more: int = 0
) -> Response:
    """Answer with the rendered predictions as JSON, in a thread if they are large.

    Args:
        more: the cost of rendering the rest of the answer, in numbers.
    """
    numbers = more + sum(map(count_numbers, predictions))
    return await render_off_loop(lambda: json_response(renderer(predictions), numbers), numbers)


def count_numbers(prediction: Prediction) -> int:
    """The cost of rendering a prediction, in numbers."""
    match prediction.main:
        case Text(value):
            numbers = 1 + len(value) // CHARACTERS_A_NUMBER
        case Records() as records:
            numbers = _NUMBERS_A_VALUE * records.size
        case main:
            numbers = main.values.size
    if len(prediction.outputs) > 1:
        numbers += sum(array.size for array in prediction.arrays.values())
    return numbers


async def render_off_loop(renderer: Callable[[], T], numbers: int) -> T:
    """Call a renderer, in a thread if rendering this many numbers would block the event loop."""
    note_rendering()
    return await offload_large(renderer, numbers, _RENDER_INLINE)


def note_rendering() -> None:
    """Note in the record of the running request that the rendering of its answer begins."""
    if (record := current_record.get()) is not None:
        record.rendering = perf_counter()
