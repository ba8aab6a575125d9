"""Errors in the form of Hugging Face's servers: a message, and its kind as Text Generation Inference names it."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.responses import Response

from protocol.http.errors import describe_error

_TYPE_BY_STATUS = {
    HTTPStatus.TOO_MANY_REQUESTS: "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "healthcheck",
}


def render_hub_error(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, message, headers = describe_error(error)
    return Response(orjson.dumps(error_body(status, message)), status, headers, media_type="application/json")


def error_body(status: HTTPStatus, message: str) -> dict[str, str]:
    """The body for an error of this status; huggingface_hub makes an exception of the kind."""
    other = "validation" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "generation"
    return {"error": message, "error_type": _TYPE_BY_STATUS.get(status, other)}
