"""A model that the whole application serves in the process of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from starlette.testclient import TestClient

from runners.core.arguments import Arguments
from runners.core.declarations import ModelDeclaration
from runners.core.models import Models


def models_of(*runners: Any) -> Models:
    """The models of runners that a test has made; it loads them itself, or has loaded them."""
    by_name = {runner.name: runner for runner in runners}
    declarations = [
        ModelDeclaration(getattr(runner, "_arguments", None) or Arguments(model_name=runner.name)) for runner in runners
    ]
    models = Models(declarations, lambda declaration: by_name[declaration.name])
    models.create_runners()
    for model in models:
        model.commit()
    return models


@dataclass(frozen=True)
class Served:
    client: TestClient
    models: Models
    arguments: Arguments

    @property
    def runner(self) -> Any:
        """The only model's runner; tests look into it."""
        [model] = self.models
        return model.runner

    @property
    def folder(self) -> str:
        """The folder of the model's files."""
        return str(self.arguments.model_dir)


@dataclass(frozen=True)
class ServedOverGrpc(Served):
    """The same over gRPC too."""

    channel: grpc.Channel
