"""KServe's `enable_latency_logging`: a log line for every request, without its query and its body."""

from __future__ import annotations

import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protocol.http.middleware.request_id import printable, read_request_id

logger = logging.getLogger(__name__)

_LONGEST_PATH = 400


class LogLatency:
    """Logs each request once its answer is sent. The line itself has the request's id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status: int | None = None

        async def note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note)
        finally:
            client_id = read_request_id(scope)
            log_latency(
                None if client_id is None else client_id.decode("latin-1"),
                scope["method"],
                scope["path"],
                status,
                started,
            )


def log_latency(client_id: str | None, method: str, path: str, status: int | str | None, started: float) -> None:
    """Log one request.

    Args:
        client_id: the client's id of the request.
        started: when the request began, in seconds of `time.perf_counter`.
    """
    logger.info(
        "requestId: %s, method: %s, path: %s, status: %s, milliseconds: %.3f",
        # KServe's text for a missing id.
        "N.A." if client_id is None else printable(client_id),
        method,
        printable(path, _LONGEST_PATH),
        status,
        (time.perf_counter() - started) * 1000,
    )
