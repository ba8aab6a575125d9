"""Splits requests between this project's application and BentoML's."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.http.middleware.allowed_methods import ReportAllowedMethods
from protocol.http.middleware.request_id import EchoRequestId
from protocol.http.open_paths import BENTOML_ASSETS, BENTOML_PATHS
from runners.core.models import Models


def route_directly(application: ASGIApp, bentoml_application: ASGIApp, models: Models) -> ASGIApp:
    """Pass requests to the application past BentoML's middleware, which takes longer than the application itself.

    BentoML's own paths, and the events of the server's start and end, go to BentoML's application. Tracing, timeouts
    and limits of concurrency are part of the middleware; the queue of the model has its own limits.
    """
    behind_middleware = EchoRequestId(ReportAllowedMethods(bentoml_application, models))

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        direct = scope["type"] == "http" and path not in BENTOML_PATHS and not path.startswith(BENTOML_ASSETS)
        await (application if direct else behind_middleware)(scope, receive, send)

    return route
