"""Splits requests between this project's application and BentoML's."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.http.middleware.allowed_methods import ReportAllowedMethods
from protocol.http.middleware.cors import Cors
from protocol.http.middleware.request_id import echo_request_id
from protocol.http.open_paths import BENTOML_ASSETS, BENTOML_PATHS
from protocol.http.path_prefix import PathPrefix
from protocol.http.recording import SERVER, noting_status, record_request
from runners.core.models import Models
from runners.core.request_record import current_record


def route_directly(
    application: ASGIApp,
    bentoml_application: ASGIApp,
    models: Models,
    root_path: str = "",
    cors: Cors | None = None,
) -> ASGIApp:
    """Pass requests to the application past BentoML's middleware, which takes longer than the application itself.

    BentoML's own paths, and the events of the server's start and end, go to BentoML's application. The settings
    of the middleware are read otherwise: see `runners/hosting/bentoml_settings.py`.

    Args:
        root_path: the prefix of all paths, from `check_root_path`.
        cors: what pages of other origins may do on BentoML's own paths; the application knows it too.
    """
    behind_middleware = ReportAllowedMethods(bentoml_application, models)

    async def answer_by_bentoml(scope: Scope, receive: Receive, send: Send) -> None:
        if (record := current_record.get()) is not None:
            record.locate(SERVER, scope["path"] if scope["path"] in BENTOML_PATHS else BENTOML_ASSETS)
        preflight: ASGIApp | None = None
        if cors is not None:
            send, preflight = cors.allowing(scope, send), cors.answer_preflight(scope)
        await echo_request_id(preflight or behind_middleware, scope, receive, noting_status(send))

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http":
            await behind_middleware(scope, receive, send)
        elif path in BENTOML_PATHS or path.startswith(BENTOML_ASSETS):
            await record_request(answer_by_bentoml, scope, receive, send)
        else:
            await application(scope, receive, send)

    return PathPrefix(route, root_path)
