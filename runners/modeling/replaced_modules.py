"""Modules that are replaced in a model, and what the model's scores are then."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from runners.core.device_thread import give_way
from runners.core.errors import brief
from runners.modeling.score_difference import measure_difference


def replace_modules(model: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Replace modules of a model in place."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in replacements:
                setattr(module, name, replacements[child])


def find_difference(run: Callable[[], Tensor], expected: Tensor, tolerance: float) -> str:
    """Why the scores that `run` returns are not as expected; empty if they are."""
    give_way()
    try:
        difference = measure_difference(run(), expected)
    except Exception as error:
        return brief(error)
    return "" if difference <= tolerance else f"its scores differ by {difference:.0e}"
