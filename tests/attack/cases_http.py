"""What is sent below the protocols: headers, URLs, bodies that do not end, connections by the thousand."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence

from tests.attack.case import (
    CUT_OFF,
    PREDICT,
    REFUSED,
    TIMED_OUT,
    Case,
    ServerKind,
    connections,
    deflate_bomb,
    repeat,
)
from tests.attack.wire import CLOSED, PENDING, RESET, Plan, http_request
from tests.attack.wire import REFUSED as NOT_CONNECTED

MIB = 2**20
LIVE = "/v2/health/live"
ONE_TEXT = b'{"instances":["a text"]}'
# A header that is as long as headers may be together, nearly.
_LONG = 60_000
_ANSWERS_TO_HEADERS = frozenset({"200", "400", "401", "403", "413", "415", "431"})

_LISTS = {
    "Accept-Encoding of commas": ("accept-encoding", ","),
    "Accept-Encoding of codings": ("accept-encoding", "a,"),
    "Accept-Encoding of qualities": ("accept-encoding", "gzip;q=0.5,"),
    "Accept-Encoding of parameters": ("accept-encoding", ";q=0"),
    "Content-Encoding of codings": ("content-encoding", "gzip,"),
    "Content-Encoding of commas": ("content-encoding", ","),
    "Content-Type of parameters": ("content-type", "a/b;c=d;"),
    "Connection of options": ("connection", "a,"),
    "TE of codings": ("te", "trailers,"),
    "Authorization of words": ("authorization", "Bearer "),
    "X-Request-Id": ("x-request-id", "7"),
    "length of a binary body's head": ("inference-header-content-length", "9"),
    "Origin": ("origin", "https://a.example,"),
    "Cookie": ("cookie", "a=b; "),
    "traceparent": ("traceparent", "00-"),
    "id of an event": ("ce-id", "\\u00"),
    "time of an event": ("ce-time", "1"),
}  # fmt: skip


def _raw(*parts: bytes, times: int = 1, pause: float = 0, reads: bool = True, answers: int = 1) -> list[Plan]:
    return [Plan(parts, answers=answers, reads=reads, pause=pause)] * times


def _get(path: str = LIVE, **headers: str) -> bytes:
    return b"".join(
        http_request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    )


def _header(name: str, value: str) -> list[Plan]:
    request = http_request("POST", PREDICT, ONE_TEXT, {"content-type": "application/json", name: value})
    return [Plan([b"".join(request)], answers=1)]


def _chunked(*chunks: bytes, trailer: bytes = b"") -> list[Plan]:
    head = http_request("POST", PREDICT, headers={"transfer-encoding": "chunked", "content-type": "application/json"})
    return _raw(*head, *chunks, b"0\r\n" + trailer + b"\r\n")


def _case(
    name: str, make: Callable[[], Sequence[Plan]], allowed: frozenset[str], patience: float = 20, quick: bool = True
) -> Case:
    return Case(name, ServerKind.EMBEDDER, connections(make), allowed, patience, quick)


def _long_header(name: str, header: str, item: str) -> Case:
    """A header as long as it may be, ten at once."""
    value = item * (_LONG // len(item))
    return _case(f"{name}, {_LONG // 1000} KB", lambda: 10 * _header(header, value), _ANSWERS_TO_HEADERS)


HEADERS = [
    _case("header of 16 MiB, never ended", lambda: _raw(b"GET / HTTP/1.1\r\nx: ", b"a" * (16 * MIB)), CUT_OFF),
    _case("header of 64 MiB, never ended", lambda: _raw(b"GET / HTTP/1.1\r\nx: ", b"a" * (64 * MIB)), CUT_OFF),
    _case("name of a header of 64 MiB", lambda: _raw(b"GET / HTTP/1.1\r\n", b"a" * (64 * MIB)), CUT_OFF),
    _case("two million headers", lambda: _raw(b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 2_000_000, b"\r\n"), CUT_OFF),
    _case("header that is continued 2,000,000 times", lambda: _raw(b"GET / HTTP/1.1\r\na: b\r\n", b" c\r\n" * 2_000_000, b"\r\n"), CUT_OFF),
    _case("URL of 64 MiB", lambda: _raw(b"GET /", b"a" * (64 * MIB), b" HTTP/1.1\r\nhost: a\r\n\r\n"), CUT_OFF),
    _case("query of 16 MiB of escapes", lambda: _raw(b"GET /v2?", b"%41&" * (4 * MIB), b" HTTP/1.1\r\nhost: a\r\n\r\n"), CUT_OFF),
    _case("method of 16 MiB", lambda: _raw(b"A" * (16 * MIB), b" / HTTP/1.1\r\nhost: a\r\n\r\n"), CUT_OFF),
    _case("empty lines before a request, 16 MiB", lambda: _raw(b"\r\n" * (8 * MIB), _get()), CUT_OFF | {"200"}),
    _case("Accept-Encoding of 4 MiB of commas", lambda: _header("accept-encoding", "," * (4 * MIB)), CUT_OFF),
    _case("Accept-Encoding of 8 MiB of codings", lambda: _header("accept-encoding", "a," * (4 * MIB)), CUT_OFF),
    *(_long_header(name, header, item) for name, (header, item) in _LISTS.items()),
    _case("no HTTP at all", lambda: _raw(bytes(range(256)) * 4096, times=20), CUT_OFF),
    _case("a handshake of TLS", lambda: _raw(bytes.fromhex("16030100f8010000f40303") + bytes(237), times=20), CUT_OFF),
    _case("both lengths of a body", lambda: _raw(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), CUT_OFF | {"405", "200"}),
    _case("a body of 10^30 bytes", lambda: _raw(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1" + b"0" * 30 + b"\r\n\r\n"), CUT_OFF | {"405"}),
    _case("a body of -1 bytes", lambda: _raw(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n"), CUT_OFF),
    _case("1,000 upgrades to WebSocket and HTTP/2", lambda: _raw(_get(connection="upgrade", upgrade="websocket"), times=500) + _raw(_get(connection="upgrade, http2-settings", upgrade="h2c"), times=500), CUT_OFF | {"200", "403", "404", "426", "501"}),
]  # fmt: skip

BODIES = [
    _case("million empty members of gzip", lambda: [Plan(http_request("POST", PREDICT, gzip.compress(b"") * 1_000_000, {"content-encoding": "gzip"}))], REFUSED),
    _case("1 GiB in 1 MiB of deflate", lambda: [Plan(http_request("POST", PREDICT, deflate_bomb(1024 * MIB), {"content-encoding": "deflate"}))], REFUSED),
    _case("1 GiB in 1 MiB of deflate, 20 times", lambda: [Plan(http_request("POST", PREDICT, deflate_bomb(1024 * MIB), {"content-encoding": "deflate"}))] * 20, REFUSED | {"503"}, 30, False),
    _case("ten codings", lambda: [Plan(http_request("POST", PREDICT, ONE_TEXT, {"content-encoding": ",".join(["gzip"] * 10)}))] * 50, REFUSED | {"415"}),
    _case("megabyte in chunks of a byte", lambda: _chunked(b'10\r\n{"instances":["\r\n', b"1\r\na\r\n" * MIB, b'3\r\n"]}\r\n'), REFUSED | {"200"}),
    _case("one extension of a chunk of 32 MiB", lambda: _chunked(b"1;", b"a" * (32 * MIB), b"\r\na\r\n"), CUT_OFF),
    _case("2,000 extensions of chunks of 16 KB", lambda: _chunked(b'10\r\n{"instances":["\r\n', (b"1;" + b"a" * 16_000 + b"\r\na\r\n") * 2000, b'3\r\n"]}\r\n'), CUT_OFF | {"200"}),
    _case("trailer of 16 MiB", lambda: _chunked(b"2\r\n{}\r\n", trailer=b"a: " + b"b" * (16 * MIB) + b"\r\n"), CUT_OFF),
    _case("two million trailers", lambda: _chunked(b"2\r\n{}\r\n", trailer=b"a: b\r\n" * 2_000_000), CUT_OFF),
    _case("10,000 requests in one packet", lambda: [Plan([_get() * 10_000], answers=10_000)], frozenset({"200", CLOSED, RESET})),
    _case("1,000 predictions in one packet", lambda: [Plan([b"".join(http_request("POST", PREDICT, ONE_TEXT)) * 1000], answers=1000)], frozenset({"200", CLOSED, RESET}), 30, False),
    _case("1,000 requests that expect a 100", lambda: _raw(*http_request("POST", PREDICT, headers={"expect": "100-continue"}, length=10), times=1000), TIMED_OUT),
    _case("60 bodies of 31 MiB that do not end", lambda: [Plan(http_request("POST", PREDICT, b" " * (31 * MIB), length=32 * MIB))] * 60, TIMED_OUT, quick=False),
    _case("60 bodies in chunks that do not end", lambda: _raw(*http_request("POST", PREDICT, headers={"transfer-encoding": "chunked"}), (b"100000\r\n" + b" " * MIB + b"\r\n") * 30, times=60), TIMED_OUT, quick=False),
    _case("1,300 bodies that come by a byte", lambda: _raw(*http_request("POST", PREDICT, length=100), *[b" "] * 20, times=1300, pause=0.5), TIMED_OUT | {PENDING}, 11, False),
    _case("32 MiB to a path that reads none", lambda: [Plan(http_request("POST", LIVE, b" " * (32 * MIB)))] * 10, CUT_OFF | {"405"}),
    _case("32 MiB to no path", lambda: [Plan(http_request("POST", "/nowhere", b" " * (32 * MIB)))] * 10, CUT_OFF | {"404"}),
]  # fmt: skip

CONNECTIONS = [
    _case("1,300 half-sent requests", lambda: _raw(b"GET / HTTP/1.1\r\nhost: a\r\n", times=1300), TIMED_OUT, quick=False),
    _case("1,300 connections that say nothing", lambda: _raw(b"", times=1300), TIMED_OUT | {PENDING}, 5, False),
    _case("300 heads that come by a byte", lambda: _raw(b"GET / HTTP/1.1\r\na: ", *[b"a"] * 30, times=300, pause=0.5), TIMED_OUT, 15, False),
    _case("5,000 connections at once", lambda: [Plan([b"".join(http_request("POST", PREDICT, ONE_TEXT))])] * 5000, frozenset({"200", "429", "503", CLOSED, RESET, NOT_CONNECTED}), 30, False),
    _case("10,000 probes, each over a connection", lambda: _raw(_get(), times=10_000), frozenset({"200", "503", CLOSED, RESET, NOT_CONNECTED}), 30, False),
    _case("40 clients that read no answer", lambda: [Plan(http_request("POST", PREDICT, repeat('{"instances":[', '"a"', 1000, "]}")()), reads=False)] * 40, frozenset({PENDING}), 15, False),
    _case("clients that read no answers of 1,000 probes", lambda: [Plan([_get() * 1000], reads=False, answers=1000)] * 100, frozenset({PENDING}), 8, False),
    _case("unload by a page's form", lambda: _form("/v2/repository/models/model/unload"), frozenset({"403", "404", "501"})),
    _case("load by a page's form", lambda: _form("/v2/repository/models/model/load"), frozenset({"403", "404", "501"})),
]  # fmt: skip


def _form(path: str) -> list[Plan]:
    """As a browser sends them without asking first: no content type, and the three of forms."""
    kinds = ({}, *({"content-type": kind} for kind in ("text/plain", "multipart/form-data; boundary=a", "application/x-www-form-urlencoded")))  # fmt: skip
    origins = ({"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"})
    return [Plan(http_request("POST", path, headers={**kind, **origin})) for kind in kinds for origin in origins]


CASES = [*HEADERS, *BODIES, *CONNECTIONS]
