"""Errors in the form of Cohere's API."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.responses import Response

from protocol.http.errors import describe_error


def render_cohere_error(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, message, headers = describe_error(error)
    return Response(orjson.dumps(error_body(status, message)), status, headers, media_type="application/json")


def error_body(_: HTTPStatus, message: str) -> dict[str, str]:
    """The body for an error."""
    return {"message": message}
