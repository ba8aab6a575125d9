"""Errors in the form of Cohere's API."""

from __future__ import annotations

from http import HTTPStatus

from protocol.http.errors import make_error_renderer


def error_body(_: HTTPStatus, message: str) -> dict[str, str]:
    """The body for an error."""
    return {"message": message}


render_cohere_error = make_error_renderer(error_body)
