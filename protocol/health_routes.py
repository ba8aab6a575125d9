"""The health of the server over HTTP; gRPC answers the same from the same two properties of the models."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import json_response
from protocol.http.routing import Endpoint
from runners.core.health_paths import LIVE_PATHS, READY_PATHS
from runners.core.models import Models


def health_routes(models: Models) -> list[Route]:
    """The routes of probes: whether the server is live, and whether it is ready."""
    live = _probe("live", lambda: models.live)
    ready = _probe("ready", lambda: models.ready)
    return [*(Route(path, live) for path in LIVE_PATHS), *(Route(path, ready) for path in READY_PATHS)]


def _probe(name: str, check: Callable[[], bool]) -> Endpoint:
    async def answer(_: Request) -> Response:
        is_so = check()
        response = json_response({name: is_so})
        response.status_code = 200 if is_so else 503
        return response

    return answer
