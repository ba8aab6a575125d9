"""Calls the endpoint of a request's path and sends its answer, compressed where the client wants that, without the
layers of Starlette's application.

Starlette's router tries all routes in order and wraps each request several times. The route of a path is found by the
same routes, but remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Match, Route
from starlette.types import Message, Receive, Scope, Send

from protocol.http.disconnects import CLIENT, Client
from protocol.http.errors import ProtocolError, ignore_disconnect, render_error
from protocol.http.middleware.compression import SMALLEST, compressing
from protocol.http.middleware.unread_bodies import answer_failure
from protocol.http.recording import note_cancelled, note_other_status, note_status, noting_status
from protocol.http.routing import Endpoint, describe_route
from runners.core.errors import RunnerError
from runners.core.request_record import current_record

# Clients use few paths; one that is longer is looked up each time, so that the remembered ones take little memory.
_MOST_PATHS = 512
_LONGEST_PATH = 256
# The endpoint, the values in the path, the protocol, and the template of the path.
_Found = tuple[Endpoint, dict[str, Any], str, str]


class Endpoints:
    """The application of some routes, which are tried in order; paths without a route go to Starlette."""

    def __init__(self, routes: Mapping[str, Sequence[Route]]) -> None:
        """
        Args:
            routes: by protocol, as records of requests name it.
        """
        self._routes = routes
        self._found: OrderedDict[tuple[str, str], _Found] = OrderedDict()
        # It answers with 404 or 405.
        all_routes = [route for each in routes.values() for route in each]
        self._starlette = Starlette(routes=all_routes, exception_handlers={HTTPException: render_error})
        self._starlette.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._find(scope) if scope["type"] == "http" else None
        if found is None:
            await self._starlette(scope, receive, noting_status(compressing(scope, send)))
            return
        endpoint, scope["path_params"], protocol, template = found
        if (record := current_record.get()) is not None:
            record.locate(protocol, template)
        request = Request(scope, receive, send)
        try:
            response = await endpoint(request)
        except Exception as error:
            response = await _answer_error(request, error)
        if type(response) is not Response:
            await _send(response, request, receive, compressing(scope, send))
            return
        note_status(response.status_code)
        if len(response.body) < SMALLEST:
            await response(scope, receive, send)
        else:
            await response(scope, receive, compressing(scope, send))

    def _find(self, scope: Scope) -> _Found | None:
        """The endpoint of a request and the values in its path; None if no route takes the path and the method."""
        key = scope["method"], scope["path"]
        found = self._found.get(key)
        if found is None:
            found = self._match(scope)
            if found is not None and len(scope["path"]) <= _LONGEST_PATH:
                self._found[key] = found
                if len(self._found) > _MOST_PATHS:
                    self._found.popitem(last=False)
        return found

    def _match(self, scope: Scope) -> _Found | None:
        """As Starlette's router: the first route for the path and the method."""
        for protocol, routes in self._routes.items():
            for route in routes:
                match, matched = route.matches(scope)
                if match is Match.FULL:
                    return route.endpoint, matched["path_params"], protocol, describe_route(route)
        return None


async def _answer_error(request: Request, error: Exception) -> Response:
    match error:
        case ClientDisconnect():
            note_cancelled()
            return await ignore_disconnect(request, error)
        case ProtocolError() | RunnerError() | HTTPException():
            return await render_error(request, error)
    return await answer_failure(request, error)


async def _send(response: Response, request: Request, receive: Receive, send: Send) -> None:
    """Send an answer that is still being made; an error before its first bytes is answered."""
    started = is_whole = False
    client: Client | None = request.scope.get(CLIENT)

    async def note(message: Message) -> None:
        nonlocal started, is_whole
        if message["type"] == "http.response.start":
            started = True
            note_other_status(message["status"])
        else:
            is_whole = not message.get("more_body", False) and (client is None or not client.has_left)
        await send(message)

    try:
        await response(request.scope, receive, note)
    except Exception as error:
        if started:
            raise
        await (await _answer_error(request, error))(request.scope, receive, note)
    if not is_whole:
        note_cancelled()
