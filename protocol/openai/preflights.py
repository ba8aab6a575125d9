"""Preflight requests of browsers, for the paths that vLLM answers."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from protocol.context import ServerContext
from protocol.openai.forwarding import inner_scope
from protocol.openai_paths import AT_ROOT, is_for_clients, list_openai_applications


class ForwardPreflights:
    """Hands a browser's preflight to vLLM's application if vLLM may answer the request that follows.

    vLLM's CORS middleware knows `--allowed-origins`, `--allowed-methods` and `--allowed-headers`.
    """

    def __init__(self, app: ASGIApp, context: ServerContext) -> None:
        self._app = app
        self._models = context.models
        self._prefix = context.openai_prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "OPTIONS" and _is_preflight(scope):
            path = scope["path"].removeprefix(self._prefix)
            forwarded = path in AT_ROOT if path == scope["path"] else is_for_clients(path)
            # A preflight does not say which model the request that follows names.
            for application in list_openai_applications(self._models) if forwarded else ():
                if application.serves(path):
                    await application.answer_preflight(inner_scope(scope, path), receive, send)
                    return
        await self._app(scope, receive, send)


def _is_preflight(scope: Scope) -> bool:
    """Whether an OPTIONS request is a preflight: https://fetch.spec.whatwg.org/#cors-preflight-request"""
    return {b"origin", b"access-control-request-method"} <= {name for name, _ in scope["headers"]}
