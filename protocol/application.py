"""All protocols in one ASGI application."""

from __future__ import annotations

import os

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protocol import open_inference, v1
from protocol.errors import ProtocolError, ignore_disconnect, render_error
from runners.errors import RunnerError
from runners.inference import Models


def create_application(models: Models, max_request_bytes: int) -> Starlette:
    """The application that serves `models`; bodies of more than `max_request_bytes` are refused."""
    return Starlette(
        routes=[
            *v1.routes(models, max_request_bytes),
            *open_inference.routes(models, max_request_bytes),
            Route("/metrics", _metrics),
        ],
        exception_handlers={
            ProtocolError: render_error,
            RunnerError: render_error,
            ClientDisconnect: ignore_disconnect,
            HTTPException: render_error,
            Exception: render_error,
        },
    )


async def _metrics(_: Request) -> Response:
    """Prometheus metrics of all workers: BentoML gives them one folder to write to."""
    registry = REGISTRY
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
