"""Calls of services of the same server, whose proxies of BentoML's send and want pickles.

BentoML gives each service that another one depends on a socket of its own, which no client reaches. Only there is a
pickle read, and only one of plain values: nothing in it is called.
"""

from __future__ import annotations

import io
import pickle
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from runners.core.errors import InputError

PICKLE_TYPE = "application/vnd.bentoml+pickle"
# The place in a request's scope.
_IS_PRIVATE = "runtime.is_private"


def mark_private(application: ASGIApp) -> ASGIApp:
    """The application of a service that listens only for the other services of its server."""

    async def mark(scope: Scope, receive: Receive, send: Send) -> None:
        scope[_IS_PRIVATE] = True
        await application(scope, receive, send)

    return mark


def may_pickle(request: Request) -> bool:
    """Whether a request comes from a service of the same server."""
    return _IS_PRIVATE in request.scope


def is_pickled(request: Request) -> bool:
    """Whether a request is a pickle, and wants one as its answer."""
    return may_pickle(request) and request.headers.get("content-type") == PICKLE_TYPE


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def read_pickle(body: bytes) -> dict[str, Any]:
    """The arguments in a pickle.

    Raises:
        InputError: it has other values than numbers, texts, lists and dictionaries.
    """
    try:
        value = _PlainUnpickler(io.BytesIO(body)).load()
    except Exception as error:
        raise InputError(f"the body is no pickle of plain values: {type(error).__name__}") from error
    if not isinstance(value, dict):
        raise InputError("the body is no pickle of arguments by name")
    return value


def answer_pickle(value: Any) -> Response:
    return Response(pickle.dumps(value, protocol=5), media_type=PICKLE_TYPE)
