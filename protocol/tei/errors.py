"""Errors in the form of Text Embeddings Inference, with its statuses.

https://github.com/huggingface/text-embeddings-inference, router/src/lib.rs (ErrorType) and router/src/http/server.rs.
Two statuses are those of that server's OpenAPI document instead: 413 for too many texts, for which its code sends 422,
and the server's own for what that server does not have, such as the 404 of an unknown model.
"""

from __future__ import annotations

from http import HTTPStatus

import orjson
from starlette.responses import Response

from protocol.http.body import NotJsonError
from protocol.http.errors import describe_error
from protocol.model_selection import NotServedError
from runners.core.errors import (
    EmptyInputError,
    GenerationFailedError,
    InputError,
    LimitExceededError,
    NonFiniteScoresError,
    PredictorError,
)

# The kinds of errors of that server.
ERROR_TYPES = ("Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty")
# By kind of error, the first that fits; other errors keep their status.
_STATUSES: dict[type[Exception], HTTPStatus] = {
    EmptyInputError: HTTPStatus.BAD_REQUEST,
    NotJsonError: HTTPStatus.BAD_REQUEST,
    LimitExceededError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    NotServedError: HTTPStatus.FAILED_DEPENDENCY,
    InputError: HTTPStatus.UNPROCESSABLE_ENTITY,
    GenerationFailedError: HTTPStatus.FAILED_DEPENDENCY,
    NonFiniteScoresError: HTTPStatus.FAILED_DEPENDENCY,
    PredictorError: HTTPStatus.FAILED_DEPENDENCY,
}
_TYPE_BY_STATUS = {
    HTTPStatus.FAILED_DEPENDENCY: "Backend",
    HTTPStatus.TOO_MANY_REQUESTS: "Overloaded",
    HTTPStatus.SERVICE_UNAVAILABLE: "Unhealthy",
}


def render_tei_error(error: Exception) -> Response:
    """The answer to a request that failed."""
    status, message, headers = describe_error(error)
    status = next((own for kind, own in _STATUSES.items() if isinstance(error, kind)), status)
    body = error_body(status, message)
    if isinstance(error, EmptyInputError):
        body["error_type"] = "Empty"
    return Response(orjson.dumps(body), status, headers, media_type="application/json")


def error_body(status: HTTPStatus, message: str) -> dict[str, str]:
    """The body for an error of this status, with that server's name for the kind of error."""
    other = "Validation" if status < HTTPStatus.INTERNAL_SERVER_ERROR else "Backend"
    return {"error": message, "error_type": _TYPE_BY_STATUS.get(status, other)}
