"""What a case of the table is: what is sent to which server, and how it may be answered."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

from tests.attack.wire import CLOSED, RESET, Plan, exchange, http_request

PREDICT = "/v1/models/model:predict"
INFER = "/v2/models/model/infer"

# What may come of something that is too much, or wrong: never a 5xx.
REFUSED = frozenset({"400", "413", "429"})
# As well as a connection that is closed while it still sends.
CUT_OFF = frozenset({"400", "413", "414", "431", CLOSED, RESET})
ANSWERED = frozenset({"200"}) | REFUSED
# Of what does not end: 408 or nothing, once its time is over; 503 where there are too many of them.
TIMED_OUT = frozenset({"408", "413", "503", CLOSED, RESET})


class ServerKind(StrEnum):
    """The servers, by what they serve."""

    EMBEDDER = "embedder"
    FILLER = "filler"
    RANKER = "ranker"
    READER = "reader"
    LABELLER = "labeller"
    TAGGER = "tagger"
    GENERATOR = "generator"
    VLLM = "vllm"


@dataclass(frozen=True)
class Ports:
    """Where the server of a case is reached."""

    http: int
    grpc: int


Outcomes = Counter[str]
Attack = Callable[[Ports, float], Outcomes]


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
        prepare: makes what is sent, before anything is measured, and returns what sends it; that takes the server's
            ports and how long to wait in seconds, and counts the statuses.
        allowed: the statuses that there may be.
        patience: seconds that it may take.
        quick: whether it takes less than three seconds, so that `make test` runs it too.
        together: what all answers must be, where `allowed` says too little: "400: 1, 200: 9".
    """

    name: str
    served: ServerKind
    prepare: Callable[[], Attack]
    allowed: frozenset[str]
    patience: float = 20.0
    quick: bool = True
    together: Outcomes | None = None


def connections(make: Callable[[], Sequence[Plan]]) -> Callable[[], Attack]:
    """Carry out plans over connections of HTTP."""

    def prepare() -> Attack:
        plans = make()

        def attack(ports: Ports, patience: float) -> Outcomes:
            return Counter(chain.from_iterable(exchange(ports.http, plans, patience)))

        return attack

    return prepare


def post(
    path: str, make: Callable[[], bytes], times: int = 1, leaves: float | None = None, **headers: str
) -> Callable[[], Attack]:
    """One body, `times` at once, each over a connection of its own; a name's `_` is a `-` in headers."""

    def plans() -> list[Plan]:
        fields = {"content-type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        return [Plan(http_request("POST", path, make(), fields), leaves=leaves)] * times

    return connections(plans)


def post_gzip(
    path: str, make: Callable[[], bytes], times: int = 1, leaves: float | None = None, **headers: str
) -> Callable[[], Attack]:
    """The same, compressed."""
    return post(path, lambda: gzip.compress(make(), 6), times, leaves, content_encoding="gzip", **headers)


def repeat(before: str, item: str, times: int, after: str) -> Callable[[], bytes]:
    """`before`, the item so many times with commas between, and `after`."""
    return lambda: (before + ",".join([item] * times) + after).encode()


def numbered(before: str, item: str, times: int, after: str) -> Callable[[], bytes]:
    """The same, with each item's number in place of its `#`."""
    return lambda: (before + ",".join(item.replace("#", str(index)) for index in range(times)) + after).encode()


def text_body(before: str, letters: str, size: int, after: str) -> Callable[[], bytes]:
    """`letters` again and again, `size` bytes in all."""
    return lambda: before.encode() + letters.encode() * (size // len(letters.encode())) + after.encode()


def deflate_bomb(size: int) -> bytes:
    """`size` zeros in zlib's form."""
    compressor = zlib.compressobj(9)
    piece = bytes(2**20)
    parts = [compressor.compress(piece) for _ in range(size // len(piece))]
    return b"".join([*parts, compressor.flush()])
