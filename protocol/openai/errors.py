"""Errors in the form of OpenAI's API, as vLLM has it."""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.responses import Response

from protocol.http.errors import describe_error
from runners.core.errors import ModelNotFoundError, OverloadedError

_CODES: dict[type[Exception], str] = {
    ModelNotFoundError: "model_not_found",
    OverloadedError: "rate_limit_exceeded",
}


def render_openai_error(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, _, headers = describe_error(error)
    return Response(orjson.dumps(openai_error(error)), status, headers, media_type="application/json")


def openai_error(error: Exception) -> dict[str, object]:
    """The `{"error": {...}}` body: `type` is vLLM's, `code` is OpenAI's or null."""
    status, message, _ = describe_error(error)
    return error_body(status, message, getattr(error, "param", None), _CODES.get(type(error)))


def error_body(
    status: HTTPStatus, message: str, param: str | None = None, code: str | None = None
) -> dict[str, object]:
    """The body for an error of this status."""
    return {"error": {"message": message, "type": _name_type(status), "param": param, "code": code}}


def _name_type(status: HTTPStatus) -> str:
    """vLLM's name for errors of this status, such as NotFoundError."""
    return f"{status.phrase.title().replace(' ', '').replace('-', '')}Error".replace("ErrorError", "Error")
