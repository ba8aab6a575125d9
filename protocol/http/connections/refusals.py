"""The refusals of connections that exceed a limit, and the log lines about them."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus

import orjson

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is closed.

    Attributes:
        reason: the reason in the log.
        answer: the whole HTTP response; empty if there is no request to answer.
        status: the response's status; 0 without one.
    """

    reason: str
    answer: bytes = b""
    status: int = 0


def refuse_with(status: HTTPStatus, message: str, retry_after: int | None = None) -> Refusal:
    """A refusal with a response in the form of other errors, after which the connection is closed."""
    body = orjson.dumps({"error": message})
    headers = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    if retry_after is not None:
        headers.append(f"retry-after: {retry_after}")
    return Refusal(message, "\r\n".join([*headers, "", ""]).encode() + body, status.value)


class RefusalLog:
    """Logs the numbers of refusals, at most one line in 5 seconds, so that a flood of them does not fill the log.

    No line repeats a client's bytes.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._last_line = -_LOG_SECONDS

    def add(self, reason: str) -> None:
        self._counts[reason] += 1
        self.write()

    def write(self) -> None:
        """Log the refusals since the last line, unless that line is recent."""
        now = time.monotonic()
        if self._counts and now - self._last_line >= _LOG_SECONDS:
            self._last_line = now
            counts = "; ".join(f"{count} x {reason}" for reason, count in self._counts.items())
            logger.warning("closed connections: %s", counts)
            self._counts.clear()
