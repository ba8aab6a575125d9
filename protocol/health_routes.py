"""The health, version and load of the server over HTTP.

gRPC answers the same about its health, from the same two properties of the models.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.body import json_response
from protocol.http.recording import SERVER
from protocol.http.routing import Endpoint
from protocol.versions import SERVER_VERSION
from runners.core.models import Models
from runners.core.probe_paths import LIVE_PATHS, LOAD_PATH, READY_PATHS, VERSION_PATH
from runners.core.request_record import in_progress


def health_routes(models: Models) -> list[Route]:
    """The routes of liveness, readiness, version and load."""
    live = _probe("live", lambda: models.live)
    ready = _probe("ready", lambda: models.ready)
    # A cloud may ask at a path of liveness whether the server is ready.
    probes = [*(Route(path, ready) for path in READY_PATHS), *(Route(path, live) for path in LIVE_PATHS)]
    return [*probes, Route(VERSION_PATH, _version), Route(LOAD_PATH, _load)]


async def _version(_: Request) -> Response:
    return json_response({"version": SERVER_VERSION})


async def _load(_: Request) -> Response:
    """The requests of models that this worker has not answered yet, over HTTP and gRPC."""
    return json_response({"server_load": sum(in_progress.values()) - in_progress[SERVER]})


def _probe(name: str, check: Callable[[], bool]) -> Endpoint:
    async def answer(_: Request) -> Response:
        is_so = check()
        response = json_response({name: is_so})
        response.status_code = 200 if is_so else 503
        return response

    return answer
