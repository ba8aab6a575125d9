"""OPTIONS: the methods that a path allows (RFC 9110, section 9.3.7)."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.errors import render_error
from protocol.http.routing import served_name
from runners.core.errors import ModelNotFoundError, VersionNotFoundError
from runners.core.models import Models
from runners.core.probe_paths import ROOT_PATH

_OF_THE_SERVER = "GET, HEAD, OPTIONS, POST"


class ReportAllowedMethods:
    """Answers OPTIONS with 204 and `Allow`, or with 404 for an unknown path; an inner HEAD request finds out which."""

    def __init__(self, app: ASGIApp, models: Models) -> None:
        self._app = app
        self._models = models

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "OPTIONS":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "*":
            await _allow(_OF_THE_SERVER)(scope, receive, send)
            return
        # The answer to it is read here, so that it must not be compressed.
        headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
        probe = {**scope, "method": "HEAD", "headers": headers}
        answer: list[Message] = []

        async def keep(message: Message) -> None:
            answer.append(message)

        await self._app(probe, receive, keep)
        response = await self._respond(Request(probe), answer)
        await response(scope, receive, send)

    async def _respond(self, probe: Request, answer: list[Message]) -> Response:
        status, headers = answer[0]["status"], dict(answer[0]["headers"])
        if status == 404:
            body = b"".join(message.get("body", b"") for message in answer[1:])
            return Response(body, status, media_type=headers[b"content-type"].decode())
        if status != 405:
            # The root is also where clients of Hugging Face's servers call the model.
            return _allow(_OF_THE_SERVER if probe.scope["path"] == ROOT_PATH else "GET, HEAD, OPTIONS")
        try:
            # The path allows other methods if its model exists.
            if "name" in probe.path_params:
                self._models.find(*served_name(probe))
        except (ModelNotFoundError, VersionNotFoundError) as error:
            return await render_error(probe, error)
        return _allow(f"OPTIONS, {headers[b'allow'].decode()}")


def _allow(methods: str) -> Response:
    return Response(status_code=204, headers={"allow": ", ".join(sorted(set(methods.split(", "))))})
