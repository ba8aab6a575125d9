"""A model that the whole application serves in the process of the tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
from starlette.testclient import TestClient

from runners.core.arguments import Arguments
from runners.core.models import Models


@dataclass(frozen=True)
class Served:
    client: TestClient
    models: Models
    arguments: Arguments

    @property
    def runner(self) -> Any:
        """The only model's runner; tests look into it."""
        return self.models.first

    @property
    def folder(self) -> str:
        """The folder of the model's files."""
        return str(self.arguments.model_dir)


@dataclass(frozen=True)
class ServedOverGrpc(Served):
    """The same over gRPC too."""

    channel: grpc.Channel
