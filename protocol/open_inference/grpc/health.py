"""gRPC's health checks: https://github.com/grpc/grpc/blob/master/doc/health-checking.md"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from protocol.open_inference.grpc.intake import Context
from protocol.open_inference.grpc.methods import SERVICE
from runners.core.errors import ModelNotFoundError
from runners.core.models import Models, reports_ready

_WATCH_SECONDS = 0.5


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """The health of the server and of each model: it is serving while it is ready."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def Check(self, request: Any, context: Context) -> Any:  # noqa: N802
        status = self._status(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service[:200]}")
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(self, request: Any, _: Context) -> AsyncIterator[Any]:  # noqa: N802
        last = None
        while True:
            status = self._status(request.service)
            if status is None:
                status = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            if status != last:
                yield health_pb2.HealthCheckResponse(status=status)
            last = status
            if self._models.draining:
                # Else the drain would wait for this call.
                return
            await asyncio.sleep(_WATCH_SECONDS)

    def _status(self, service: str) -> Any:
        """The status of the server, by its name or none, or of a model by its name; None for other names."""
        if service in ("", SERVICE):
            serving = self._models.ready
        else:
            try:
                serving = reports_ready(self._models, service)
            except ModelNotFoundError:
                return None
        status = health_pb2.HealthCheckResponse
        return status.SERVING if serving else status.NOT_SERVING
