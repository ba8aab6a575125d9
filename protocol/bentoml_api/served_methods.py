"""The methods that models answer, and BentoML's description of these.

service.py imports this module in BentoML's parent process too: it imports nothing that answers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from protocol.bentoml_api.methods import METHODS, Method
from runners.core.task import Task

if TYPE_CHECKING:
    from runners.core.models import Models
    from runners.core.runner import Runner


def serves_method(runner: Runner, method: Method) -> bool:
    """Whether a model answers a method."""
    if (generator := runner.generator) is None:
        return runner.task in method.tasks
    return generator.generates and method.is_stream


def find_methods(tasks: Collection[Task | None]) -> frozenset[str]:
    """The names of the methods that call models of these tasks; of all methods if a task or all tasks are unknown."""
    if not tasks or None in tasks:
        return frozenset(METHODS)
    return frozenset(name for name, method in METHODS.items() if not method.tasks.isdisjoint({*tasks}))


def find_served(models: Models) -> frozenset[str]:
    """The names of the methods that the models answer, or may answer once they are loaded."""
    served: set[str] = set()
    waiting = []
    for model in models.choose_versions():
        if model.ready and model.runner is not None:
            served.update(name for name, method in METHODS.items() if serves_method(model.runner, method))
        elif model.is_loading:
            waiting.append(model.declaration.arguments.task)
    return frozenset(served) if served and not waiting else find_methods(waiting) | served


def filter_routes(schema: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """BentoML's description of a service, with some of its methods."""
    return {**schema, "routes": [route for route in schema["routes"] if route["name"] in names]}
