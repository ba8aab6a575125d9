"""All protocols in one ASGI application."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from protocol import generate, open_inference, openapi, repository, tei, v1
from protocol.compression import CompressResponses
from protocol.connection import KeepAlive, answer_failure
from protocol.errors import ProtocolError, UnauthorizedError, ignore_disconnect, render_error
from protocol.http.body_budget import BoundBodies
from protocol.keys import Keys
from protocol.latency import LogLatency
from protocol.openai import routes as openai
from protocol.options import AnswerOptions
from protocol.request_id import EchoRequestId
from runners.arguments import Arguments
from runners.errors import RunnerError
from runners.inference import Models

# What probes and scrapers ask, which have no key, and what tells of the keys.
_OPEN = ("/", "/v2", "/v2/health/live", "/v2/health/ready", "/metrics", *openapi.OPEN_PATHS)


def create_application(models: Models, arguments: Arguments, openai_prefix: str = "/openai") -> ASGIApp:
    """The application that serves `models`.

    Args:
        openai_prefix: where OpenAI's API is served, beside `/v1`.
    """
    application: ASGIApp = Starlette(
        routes=create_routes(models, arguments, openai_prefix),
        exception_handlers={
            ProtocolError: render_error,
            RunnerError: render_error,
            ClientDisconnect: ignore_disconnect,
            HTTPException: render_error,
            Exception: answer_failure,
        },
    )
    # Around Starlette, not in it: its own answer to a failure is outside of its middleware.
    application = AnswerOptions(application, models)
    application = openai.ForwardPreflights(application, models, openai_prefix)
    if arguments.api_key:
        application = _RequireKey(application, Keys(arguments.api_key))
    application = BoundBodies(CompressResponses(application), arguments.max_buffered_bytes)
    application = EchoRequestId(KeepAlive(application))
    return LogLatency(application) if arguments.enable_latency_logging else application


def create_routes(models: Models, arguments: Arguments, openai_prefix: str) -> list[Route]:
    """The routes of all protocols, in the order in which they are tried."""
    return [
        *openai.routes(models, arguments, openai_prefix),
        *v1.routes(models, arguments),
        *generate.routes(models, arguments),
        *repository.routes(models, arguments),
        *tei.routes(models, arguments),
        *open_inference.routes(models, arguments),
        *openapi.routes(models, arguments, openai_prefix),
        Route("/metrics", _metrics),
    ]


class _RequireKey:
    """Refuses requests that carry none of the keys; browsers send none with OPTIONS."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS" and scope["path"] not in _OPEN:
            try:
                self._keys.check(Headers(scope=scope).get("authorization", ""))
            except UnauthorizedError as error:
                await (await render_error(Request(scope), error))(scope, receive, send)
                return
        await self._app(scope, receive, send)


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
