"""The methods in BentoML's description of the service, for models in each state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from protocol.bentoml_api.methods import METHODS
from protocol.bentoml_api.served_methods import filter_routes, find_methods, find_served
from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.models import Models
from runners.core.task import Task


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ([Task.FILL_MASK], {"fill_mask"}),
        ([Task.TEXT_EMBEDDING, Task.TEXT2TEXT_GENERATION], {"embed", "generate", "chat"}),
        ([Task.FILL_MASK, None], {*METHODS}),
        ([], {*METHODS}),
    ],
)
def test_find_methods(tasks: list[Task | None], names: set[str]) -> None:
    assert find_methods(tasks) == names


def make_models(**tasks: tuple[str, Task | None]) -> Models:
    """Models of these states and tasks; the task of a model that is not loaded is that of its arguments."""
    declarations = [
        ModelDeclaration(Arguments(model_name=name, task=task), load=state != "unloaded")
        for name, (state, task) in tasks.items()
    ]

    def create(declaration: ModelDeclaration) -> Any:
        state, task = tasks[declaration.name]
        is_ready = state == "ready"
        return SimpleNamespace(ready=is_ready, generator=None, task=task if is_ready else None)

    models = Models(declarations, create)
    models.create_runners()
    for model in models:
        if tasks[model.name][0] == "ready":
            model.commit()
    return models


@pytest.mark.parametrize(
    ("tasks", "names"),
    [
        ({"a": ("ready", Task.FILL_MASK)}, {"fill_mask"}),
        ({"a": ("loading", Task.TEXT_EMBEDDING)}, {"embed"}),
        ({"a": ("loading", None)}, {*METHODS}),
        ({"a": ("ready", Task.FILL_MASK), "b": ("loading", Task.TEXT_EMBEDDING)}, {"fill_mask", "embed"}),
        ({"a": ("ready", Task.FILL_MASK), "b": ("loading", None)}, {*METHODS}),
        ({"a": ("ready", Task.FILL_MASK), "b": ("unloaded", Task.TEXT_EMBEDDING)}, {"fill_mask"}),
        ({"a": ("unloaded", Task.TEXT_EMBEDDING)}, {*METHODS}),
        ({}, {*METHODS}),
    ],
)
def test_find_served(tasks: dict[str, tuple[str, Task | None]], names: set[str]) -> None:
    assert find_served(make_models(**tasks)) == names


def test_filter_routes() -> None:
    schema = {"name": "service", "routes": [{"name": "embed"}, {"name": "rank"}]}
    assert filter_routes(schema, {"rank"}) == {"name": "service", "routes": [{"name": "rank"}]}
