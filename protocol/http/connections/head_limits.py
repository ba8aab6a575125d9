"""Limits of a request's head: its URL, and the number and bytes of its headers."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from protocol.http.connections.refusals import Refusal, refuse_with
from runners.core.request_limits import RequestLimits


class HeadLimits:
    """The operator's limits; each check gives the refusal of a head that exceeds its limit."""

    __slots__ = ("_headers", "_url_bytes", "header_bytes")

    def __init__(self, limits: RequestLimits) -> None:
        self._url_bytes = limits.max_url_bytes
        self._headers = limits.max_headers
        self.header_bytes = limits.max_header_bytes

    def check_url(self, url: bytes) -> Refusal | None:
        if len(url) <= self._url_bytes:
            return None
        message = f"the URL has more than the {self._url_bytes} bytes that --max_url_bytes allows"
        return refuse_with(HTTPStatus.REQUEST_URI_TOO_LONG, message)

    def check_count(self, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        if len(headers) <= self._headers:
            return None
        message = f"{len(headers)} headers are more than the {self._headers} that --max_headers allows"
        return refuse_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)

    def refuse_bytes(self, in_body: bool) -> Refusal:
        """The refusal of a head that has too many bytes.

        Args:
            in_body: whether the bytes are sizes, extensions or trailers of a chunked body.
        """
        what = "a chunk's extension or the trailers are" if in_body else "request line and headers are"
        message = f"{what} larger than the {self.header_bytes} bytes that --max_header_bytes allows"
        return refuse_with(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, message)


def count_bytes(method: bytes, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> int:
    """Bytes of the request line and the headers, each with one space and CRLF."""
    line = len(method) + len(url) + len("  HTTP/1.1\r\n")
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def make_body_head(method: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | None:
    """A head that tells the parser of a request's body; None if the request has none."""
    if method == b"CONNECT":
        return None
    for name, value in headers:
        if name in (b"content-length", b"transfer-encoding"):
            return b"POST / HTTP/1.1\r\n%s: %s\r\n\r\n" % (name, value)
    return None
