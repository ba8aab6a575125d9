"""Routes whose endpoints answer every method themselves, and the errors of their endpoints."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from protocol.http.errors import MethodNotAllowedError

Endpoint = Callable[[Request], Awaitable[Response]]
RenderError = Callable[[Exception], Response]


def post_route(
    path: str, endpoint: Endpoint, render_error: RenderError | None = None, others: Sequence[str] = ()
) -> Route:
    """A route for POST, which answers other methods with 405 even where a later route matches the path too.

    Args:
        render_error: makes the body of that 405; None for the application's own error handler.
        others: the methods that earlier routes take at this path.
    """
    return _guarded_route(path, endpoint, ("POST",), render_error, others)


def get_route(path: str, endpoint: Endpoint, render_error: RenderError) -> Route:
    """A route for GET and HEAD, as `post_route`."""
    return _guarded_route(path, endpoint, ("GET", "HEAD"), render_error)


def find_endpoint(routes: Iterable[Route], path: str) -> Endpoint:
    """The endpoint of the route with this path, which is among them."""
    return next(route.endpoint for route in routes if route.path == path)


def _guarded_route(
    path: str,
    endpoint: Endpoint,
    methods: Sequence[str],
    render_error: RenderError | None,
    others: Sequence[str] = (),
) -> Route:
    async def guarded(request: Request) -> Response:
        if request.method in methods:
            return await endpoint(request)
        allowed = ", ".join([*others, *methods])
        error = MethodNotAllowedError(
            f"{request.method} is not allowed on {request.url.path}; allowed: {allowed}", allowed=allowed
        )
        if render_error is None:
            raise error
        return render_error(error)

    return any_route(path, guarded)


def any_route(path: str, endpoint: Endpoint) -> Route:
    """A route for all methods, so that Starlette's router answers none of them itself."""
    route = Route(path, endpoint)
    route.methods = None
    # A name with line breaks is an unknown model's name, not an unknown path.
    route.path_regex = re.compile(route.path_regex.pattern, re.DOTALL)
    return route


def describe_route(route: Route) -> str:
    """The template of a route's path, such as /v1/models/{name}:predict."""
    return route.path.replace(":path}", "}")


def served_name(request: Request) -> tuple[str, str]:
    """The model's name and version in the path; the version is empty if the path has none."""
    return request.path_params["name"], request.path_params.get("version", "")


def with_errors(endpoint: Endpoint, render_error: RenderError) -> Endpoint:
    """The endpoint, whose errors get the body that `render_error` makes."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except ClientDisconnect:
            raise
        except Exception as error:
            return render_error(error)

    return answer
