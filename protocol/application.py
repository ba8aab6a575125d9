"""All protocols in one ASGI application."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from protocol.http.body_budget import BoundBodies
from protocol.http.errors import ProtocolError, ignore_disconnect, render_error
from protocol.http.middleware.allowed_methods import ReportAllowedMethods
from protocol.http.middleware.authentication import Access, RequireKey
from protocol.http.middleware.compression import CompressResponses
from protocol.http.middleware.latency import LogLatency
from protocol.http.middleware.request_id import EchoRequestId
from protocol.http.middleware.unread_bodies import KeepAlive, answer_failure
from protocol.kserve_v1 import routes as v1
from protocol.open_inference import generate, repository
from protocol.open_inference import rest as open_inference
from protocol.openai import routes as openai
from protocol.openapi import document as openapi
from protocol.tei import routes as tei
from runners.core.arguments import Arguments
from runners.core.errors import RunnerError
from runners.core.models import Models


def create_application(models: Models, arguments: Arguments, openai_prefix: str = "/openai") -> ASGIApp:
    """The application that serves `models`.

    Args:
        openai_prefix: where OpenAI's API is served, beside `/v1`.
    """
    access = Access(arguments)
    application: ASGIApp = Starlette(
        routes=create_routes(models, arguments, access, openai_prefix),
        exception_handlers={
            ProtocolError: render_error,
            RunnerError: render_error,
            ClientDisconnect: ignore_disconnect,
            HTTPException: render_error,
            Exception: answer_failure,
        },
    )
    # Around Starlette, not in it: its own answer to a failure is outside of its middleware.
    application = ReportAllowedMethods(application, models)
    application = openai.ForwardPreflights(application, models, openai_prefix)
    if access.asks_clients:
        application = RequireKey(application, access)
    application = BoundBodies(CompressResponses(application), arguments.max_buffered_bytes)
    application = EchoRequestId(KeepAlive(application))
    return LogLatency(application) if arguments.enable_latency_logging else application


def create_routes(models: Models, arguments: Arguments, access: Access, openai_prefix: str) -> list[Route]:
    """The routes of all protocols, in the order in which they are tried."""
    return [
        # A flood of probes is to cost little.
        *open_inference.health_routes(models),
        *openai.routes(models, arguments, access, openai_prefix),
        *v1.routes(models, arguments),
        *generate.routes(models, arguments),
        *repository.routes(models, arguments, access),
        *tei.routes(models, arguments),
        *open_inference.routes(models, arguments),
        *openapi.routes(models, arguments, access, openai_prefix),
        Route("/metrics", _metrics),
    ]


async def _metrics(_: Request) -> Response:
    """Prometheus metrics of all workers: BentoML gives them one folder to write to."""
    registry = REGISTRY
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        _forget_dead_workers(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


def _forget_dead_workers(folder: Path) -> None:
    """Take a worker that was killed out of the gauges of what is under way; its counters stay."""
    for pid in {path.stem.rpartition("_")[2] for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            with contextlib.suppress(FileNotFoundError):
                # Another worker may be at it too.
                mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]
        except PermissionError:
            continue
