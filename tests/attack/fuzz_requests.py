"""Fuzzed requests over HTTP, to an application in this process or over sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from starlette.types import ASGIApp, Message

from tests.attack.mutation import STRANGE, mutate, mutate_bytes, to_json
from tests.attack.seeds import Seed

# Without a status: the application let an exception through, or gave no answer in time.
RAISED, HUNG = 599, 598
_SECONDS = 30.0
_HEADERS: Sequence[tuple[str, Sequence[str]]] = (
    ("content-type", ("application/json", "text/plain", "application/cloudevents+json", "application/octet-stream", "a", "")),
    ("content-type", ("application/json; charset=utf-16", "application/json;charset=\xff", "multipart/form-data")),
    ("accept", ("*/*", "application/json", "text/event-stream", "a/b;q=x", "\xff")),
    ("accept-encoding", ("gzip", "zstd, br;q=0", "*;q=0", "gzip;q=1e400", "identity;q=0", ",;q=", "\xff")),
    ("content-encoding", ("gzip", "deflate", "identity", "gzip, gzip", "br", "", "\xff")),
    ("inference-header-content-length", ("0", "1", "10", "-1", "9" * 30, "1.5", "\xb2", "a")),
    ("x-request-id", ("7", "\xff", "a" * 3000, "a\tb")),
    ("authorization", ("Bearer a", "Basic \xff", "Bearer", "")),
    ("origin", ("https://evil.example", "null", "\xff")),
    ("ce-specversion", ("1.0", "0.3", "9", "\xff")), ("ce-type", ("a", "")), ("ce-source", ("a", "\xff", "%")),
    ("ce-id", ("1", "", "%00", "\xff")), ("ce-time", ("2020-01-01T00:00:00Z", "yesterday", "9" * 50)),
)  # fmt: skip


@dataclass(frozen=True)
class FuzzedRequest:
    """A request that may be wrong in any way; `route` is of the right one."""

    route: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


def make_request(random: Random, seeds: Sequence[Seed]) -> FuzzedRequest:
    """A request that a seed of the right ones became."""
    seed = random.choice(seeds)
    path, method = seed.path, "POST"
    body = mutate(random, seed.body, seed.options)
    headers = {"content-type": "application/json"}
    if path.endswith("/infer") and random.random() < 0.15:
        data, headers = _to_binary(random, body)
    else:
        data = to_json(body)
    if random.random() < 0.1:
        data = mutate_bytes(random, data)
    if random.random() < 0.15:
        name, values = random.choice(_HEADERS)
        headers[name] = random.choice(values)
    if random.random() < 0.05:
        data, headers["content-encoding"] = _compress(random, data)
    if random.random() < 0.03:
        method = random.choice(("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH", "TRACE"))
    if random.random() < 0.03:
        path = random.choice((path + "/", path.replace("model", "none"), path + "?a=%ff&b", path.replace("model", "%00"), "/v1/%ff", path.replace("/v", "//v"), path + "\xff"))  # fmt: skip
    return FuzzedRequest(seed.path, method, path, tuple(headers.items()), data)


def _to_binary(random: Random, body: Any) -> tuple[bytes, dict[str, str]]:
    """The binary extension's form: texts after the JSON."""
    text = str(random.choice(STRANGE)).encode(errors="replace")[:2000]
    data = len(text).to_bytes(4, "little") + text
    tensor = {"name": "input-0", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    if isinstance(body, dict):
        body["inputs"] = [tensor if random.random() < 0.7 else mutate(random, tensor, ())]
    head = json.dumps(body).encode()
    length = len(head) if random.random() < 0.8 else random.choice((0, 1, len(head) - 1, len(head) + 1, 10**9))
    headers = {"content-type": "application/octet-stream", "inference-header-content-length": str(length)}
    return head + (data if random.random() < 0.7 else mutate_bytes(random, data)), headers


def _compress(random: Random, data: bytes) -> tuple[bytes, str]:
    kind, packed = random.choice((("gzip", gzip.compress(data, 1, mtime=0)), ("deflate", zlib.compress(data, 1))))
    return packed if random.random() < 0.7 else mutate_bytes(random, packed), kind


async def ask(application: ASGIApp, request: FuzzedRequest) -> tuple[int, str]:
    """The status of an application in this process, and what it raised, if anything."""
    status = RAISED
    path, _, query = request.path.partition("?")
    waiting: list[Message] = [{"type": "http.request", "body": request.body, "more_body": False}]
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "scheme": "http",
        "method": request.method, "path": path, "raw_path": path.encode("latin-1"), "query_string": query.encode(),
        "root_path": "", "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in (
            ("host", "localhost"), ("content-length", str(len(request.body))), *request.headers)],
    }  # fmt: skip

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        # The client stays until it has its answer.
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]

    try:
        async with asyncio.timeout(_SECONDS):
            await application(scope, receive, send)
    except TimeoutError:
        return HUNG, "no answer"
    except Exception as error:
        return max(status, 500), f"{type(error).__name__}: {error}"[:300]
    return status, ""


def is_failure(status: int) -> bool:
    """Whether it is the server's fault: a 501 and a 503 are answers."""
    return status >= 500 and status not in (501, 503)
