"""Fuzzed bytes over the sockets of a started server: right requests of HTTP with bytes changed, cut off or repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from tests.attack.fuzz_requests import FuzzedRequest, is_failure, make_request
from tests.attack.mutation import mutate_bytes
from tests.attack.seeds import Seed
from tests.attack.wire import CLOSED, RESET, Plan, exchange

# Connections at a time; what does not end waits for the server's time-outs.
_AT_ONCE = 500
_PATIENCE = 30.0


def fuzz_bytes(port: int, seeds: Sequence[Seed], requests: int, seed: str) -> Iterator[tuple[str, bytes, list[str]]]:
    """The seed of each request, its bytes, and its statuses or how its connection ended."""
    for start in range(0, requests, _AT_ONCE):
        names = [f"{seed}-{number}" for number in range(start, min(start + _AT_ONCE, requests))]
        sent = [make_bytes(Random(name), seeds) for name in names]
        yield from zip(names, sent, exchange(port, [Plan([each]) for each in sent], _PATIENCE), strict=True)


def is_fault(outcomes: Sequence[str]) -> bool:
    """Whether the server is to blame: it must answer, or close what is no HTTP."""
    return any(is_failure(int(each)) if each.isdigit() else each not in (CLOSED, RESET) for each in outcomes)


def make_bytes(random: Random, seeds: Sequence[Seed]) -> bytes:
    """What a client sends over one connection."""
    request = make_request(random, seeds)
    if request.method == "HEAD":
        # Its answer has no body, whatever its length says, which who counts answers would have to know.
        request = replace(request, method="GET")
    write = random.choice((_write, _write, _write_chunks))
    data = write(random, request)
    return random.choice(_CHANGES)(random, data)


def _write(random: Random, request: FuzzedRequest) -> bytes:
    length = len(request.body)
    if random.random() < 0.1:
        length = random.choice((0, length + 1, max(length - 1, 0), 10**30, -1))
    return _head(request, f"content-length: {length}") + request.body


def _write_chunks(random: Random, request: FuzzedRequest) -> bytes:
    size = random.choice((1, 7, 1000))
    chunks = [request.body[start : start + size] for start in range(0, min(len(request.body), 200 * size), size)]
    written = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    return _head(request, "transfer-encoding: chunked") + written + b"0\r\n\r\n"


def _head(request: FuzzedRequest, framing: str) -> bytes:
    fields = "".join(f"{name}: {value}\r\n" for name, value in request.headers)
    head = (
        f"{request.method} {request.path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n{framing}\r\n{fields}\r\n"
    )
    return head.encode("latin-1")


def _change_head(random: Random, data: bytes) -> bytes:
    head, end, body = data.partition(b"\r\n\r\n")
    return mutate_bytes(random, head) + end + body


def _cut(random: Random, data: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def _repeat(random: Random, data: bytes) -> bytes:
    """As a client that does not wait for answers."""
    return data.replace(b"connection: close\r\n", b"") * random.choice((1, 2)) + data


_CHANGES: tuple[Callable[[Random, bytes], bytes], ...] = (
    lambda _, data: data, _change_head, _change_head, _change_head, mutate_bytes, mutate_bytes, _repeat, _cut,
)  # fmt: skip
