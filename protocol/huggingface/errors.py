"""Errors in the form of Hugging Face's servers: a message, and its kind as Text Generation Inference names it."""

from __future__ import annotations

from http import HTTPStatus

from protocol.http.errors import make_error_renderer

_TYPE_BY_STATUS = {
    HTTPStatus.TOO_MANY_REQUESTS: "overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "healthcheck",
}


def error_body(status: HTTPStatus, message: str) -> dict[str, str]:
    """The body for an error of this status; huggingface_hub makes an exception of the kind."""
    other = "validation" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "generation"
    return {"error": message, "error_type": _TYPE_BY_STATUS.get(status, other)}


render_hub_error = make_error_renderer(error_body)
