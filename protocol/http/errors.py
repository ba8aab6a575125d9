"""Errors of protocols, and the table of the HTTP status of every error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from types import MappingProxyType

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from runners.core.errors import (
    ArgumentsError,
    EngineDeadError,
    GenerationFailedError,
    InputError,
    LimitExceededError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
    NonFiniteScoresError,
    OverloadedError,
    PredictorAnswerError,
    PredictorRefusalError,
    PredictorTimeoutError,
    PredictorUnavailableError,
    VersionNotFoundError,
    log_failure,
    refer_to,
)
from runners.core.request_record import current_record


class ProtocolError(Exception):
    """A request that cannot be answered; the message is shown to the client."""

    status = HTTPStatus.BAD_REQUEST
    headers: Mapping[str, str] = MappingProxyType({})


class MessageTimeoutError(ProtocolError):
    """A gRPC message did not arrive in time."""

    status = HTTPStatus.REQUEST_TIMEOUT


class NotFoundError(ProtocolError):
    """No such path."""

    status = HTTPStatus.NOT_FOUND


class UnauthorizedError(ProtocolError):
    """The request carries none of the operator's keys."""

    status = HTTPStatus.UNAUTHORIZED
    headers: Mapping[str, str] = MappingProxyType({"www-authenticate": "Bearer"})


class ForbiddenError(ProtocolError):
    """The operator does not allow the request."""

    status = HTTPStatus.FORBIDDEN


class MethodNotAllowedError(ProtocolError):
    """The path allows other methods only."""

    status = HTTPStatus.METHOD_NOT_ALLOWED

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"allow": allowed}


class BodyTooLargeError(ProtocolError):
    """The body is larger than the operator allows; the rest of it is not read."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class BodiesTooLargeError(ProtocolError):
    """The bodies of all requests under way are larger than the operator allows; the client may try again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    headers: Mapping[str, str] = MappingProxyType({"retry-after": "1"})

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"the bodies of all requests under way have the {limit} bytes that --max_buffered_bytes allows; try again"
        )


class UnsupportedMediaTypeError(ProtocolError):
    """This server does not read bodies of this content type or encoding."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class UnsupportedEncodingError(UnsupportedMediaTypeError):
    """This server does not decode the body's content coding; the answer lists those that it decodes (RFC 9110, section
    15.5.16)."""

    def __init__(self, encoding: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"the content encoding {encoding} is not supported; send {', '.join(allowed)} or the body as it is"
        )
        self.headers = {"accept-encoding": ", ".join(allowed)}


class NotImplementedByModelError(ProtocolError):
    """The protocol has the call, but the model does not implement it."""

    status = HTTPStatus.NOT_IMPLEMENTED


# Messages repeat parts of the request, which may be of any length.
_LONGEST_MESSAGE = 400
_STATUS_BY_RUNNER_ERROR: dict[type, HTTPStatus] = {
    InputError: HTTPStatus.BAD_REQUEST,
    LimitExceededError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ModelNotFoundError: HTTPStatus.NOT_FOUND,
    VersionNotFoundError: HTTPStatus.NOT_FOUND,
    # The client that asked to load the model learns why it was not loaded.
    ArgumentsError: HTTPStatus.INTERNAL_SERVER_ERROR,
    ModelLoadError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # The message names the text, so that the client can ask for the others.
    NonFiniteScoresError: HTTPStatus.INTERNAL_SERVER_ERROR,
    GenerationFailedError: HTTPStatus.INTERNAL_SERVER_ERROR,
    ModelNotReadyError: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineDeadError: HTTPStatus.SERVICE_UNAVAILABLE,
    PredictorUnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    PredictorTimeoutError: HTTPStatus.GATEWAY_TIMEOUT,
    PredictorAnswerError: HTTPStatus.BAD_GATEWAY,
    PredictorRefusalError: HTTPStatus.BAD_GATEWAY,
}


# gRPC's codes: https://github.com/grpc/grpc/blob/master/doc/statuscodes.md
_GRPC_CODE_BY_STATUS = {
    HTTPStatus.UNAUTHORIZED: "UNAUTHENTICATED",
    HTTPStatus.FORBIDDEN: "PERMISSION_DENIED",
    HTTPStatus.NOT_FOUND: "NOT_FOUND",
    HTTPStatus.REQUEST_TIMEOUT: "DEADLINE_EXCEEDED",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RESOURCE_EXHAUSTED",
    HTTPStatus.TOO_MANY_REQUESTS: "RESOURCE_EXHAUSTED",
    HTTPStatus.INTERNAL_SERVER_ERROR: "INTERNAL",
    HTTPStatus.NOT_IMPLEMENTED: "UNIMPLEMENTED",
    HTTPStatus.BAD_GATEWAY: "INTERNAL",
    HTTPStatus.SERVICE_UNAVAILABLE: "UNAVAILABLE",
    HTTPStatus.GATEWAY_TIMEOUT: "DEADLINE_EXCEEDED",
}


def grpc_code(status: HTTPStatus) -> str:
    """The name of the gRPC code of an error that has this status over HTTP."""
    return _GRPC_CODE_BY_STATUS.get(status, "INVALID_ARGUMENT")


# Why requests are refused, as metrics and logs name it: by the kind of error, else by its status.
_REFUSAL_BY_ERROR: Mapping[type, str] = MappingProxyType(
    {
        EngineDeadError: "engine_dead",
        GenerationFailedError: "generation_failed",
        LimitExceededError: "limit",
        ModelLoadError: "load_failed",
        NonFiniteScoresError: "non_finite",
        BodiesTooLargeError: "overloaded",
        PredictorAnswerError: "predictor",
        PredictorRefusalError: "predictor",
        PredictorTimeoutError: "predictor",
        PredictorUnavailableError: "predictor",
    }
)
_REFUSAL_BY_STATUS: Mapping[int, str] = MappingProxyType(
    {
        400: "input",
        401: "unauthorized",
        403: "forbidden",
        404: "not_found",
        405: "method",
        408: "timeout",
        413: "limit",
        414: "limit",
        415: "media_type",
        422: "input",
        429: "overloaded",
        431: "limit",
        501: "not_implemented",
        503: "not_ready",
    }
)
_INTERNAL = "internal"
# All values of a record's `refusal`.
REFUSALS = frozenset({*_REFUSAL_BY_ERROR.values(), *_REFUSAL_BY_STATUS.values(), _INTERNAL})


def name_refusal(error: Exception, status: int) -> str:
    """Why a request was refused.

    Args:
        status: the HTTP status of the error.
    """
    return _REFUSAL_BY_ERROR.get(type(error)) or name_status_refusal(status)


def name_status_refusal(status: int) -> str:
    """Why a request was refused, if only the HTTP status of its answer is known."""
    return _REFUSAL_BY_STATUS.get(status, "input" if status < 500 else _INTERNAL)


def describe_error(error: Exception) -> tuple[HTTPStatus, str, Mapping[str, str]]:
    """The status, message and headers of an error; an unexpected one is logged, and its message hidden.

    The record of the running request gets the error as the reason of its refusal.
    """
    described = _describe(error)
    if (record := current_record.get()) is not None:
        record.refusal = name_refusal(error, described[0])
    return described


def _describe(error: Exception) -> tuple[HTTPStatus, str, Mapping[str, str]]:
    match error:
        case ProtocolError():
            return error.status, _cut(str(error)), error.headers
        case HTTPException():
            return HTTPStatus(error.status_code), error.detail, error.headers or {}
        case OverloadedError():
            return HTTPStatus.TOO_MANY_REQUESTS, _cut(str(error)), {"retry-after": str(math.ceil(error.retry_after))}
    for kind in type(error).__mro__:
        if (status := _STATUS_BY_RUNNER_ERROR.get(kind)) is not None:
            return status, _cut(str(error)), {}
    # The log has the rest under the same number.
    log_failure(error)
    return HTTPStatus.INTERNAL_SERVER_ERROR, f"internal server error (reference {refer_to(error)})", {}


def make_error_renderer(
    error_body: Callable[[HTTPStatus, str], Mapping[str, object]],
) -> Callable[[Exception], Response]:
    """What makes the answers to requests that failed, in a protocol's form.

    Args:
        error_body: makes the body, from the status and the message.
    """

    def render(error: Exception) -> Response:
        status, message, headers = describe_error(error)
        return Response(orjson.dumps(error_body(status, message)), status, headers, media_type="application/json")

    return render


async def ignore_disconnect(_: Request, __: Exception) -> Response:
    """An answer that is never read: the client disconnected before it had sent its body."""
    return Response(status_code=HTTPStatus.BAD_REQUEST)


async def render_error(request: Request, error: Exception) -> Response:
    """The `{"error": ...}` body of V1 and the Open Inference Protocol."""
    status, message, headers = describe_error(error)
    if isinstance(error, HTTPException):
        # Starlette's router raised it, without a message about the path.
        match status:
            case HTTPStatus.METHOD_NOT_ALLOWED:
                allowed = ", ".join(sorted(headers["Allow"].split(", ")))
                message = f"{request.method} is not allowed on {request.url.path}; allowed: {allowed}"
            case HTTPStatus.NOT_FOUND:
                message = f"there is nothing at {request.url.path}; the protocols are under /v1 and /v2"
    return Response(orjson.dumps({"error": _cut(message)}), status, headers, media_type="application/json")


def _cut(message: str) -> str:
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]} ..."
