"""JSON of large answers, encoded piece by piece, because a call of the encoder stops all other threads.

Payloads may have iterators in place of lists, so that only a piece of them exists at a time: the garbage collector
stops all threads while it visits many objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from protocol.http.offload import give_way

# The most values that one call encodes, in some ms.
_PIECE = 2**14
_CHARACTERS_A_VALUE = 64
# Up to this many children are weighed one by one; otherwise all get the weight of the first.
_FEW = 8


def encode_json(payload: Any, values: int) -> bytes:
    """Encode a payload that has about `values` numbers and names; numpy arrays and iterators become lists."""
    return dump_json(payload) if values <= _PIECE else join_pieces(payload)


def join_pieces(payload: Any) -> bytes:
    """Encode a payload in pieces, between which other work may run."""
    parts = []
    for part in encode_pieces(payload):
        parts.append(part)
        give_way()
    return b"".join(parts)


def dump_json(payload: Any) -> bytes:
    """Encode a payload in one call, for small answers."""
    return orjson.dumps(payload, default=list, option=orjson.OPT_SERIALIZE_NUMPY)


def encode_pieces(payload: Any) -> Iterator[bytes]:
    """The JSON of a payload in parts, none of which takes more than some ms to encode."""
    match payload:
        case dict() if _weigh(payload) > _PIECE:
            opening = b"{"
            for name, value in payload.items():
                yield opening + orjson.dumps(name) + b":"
                yield from encode_pieces(value)
                opening = b","
            yield b"}"
        case np.ndarray() if payload.size > _PIECE:
            yield from _encode_array(payload)
        case list() | tuple() if _weigh(payload) > _PIECE:
            yield from _encode_items(payload)
        case Iterator():
            yield from _encode_items(payload)
        case _:
            yield dump_json(payload)


def _encode_items(items: Iterable[Any]) -> Iterator[bytes]:
    opening = b"["
    piece: list[Any] = []
    total = 0
    for item in items:
        weight = _weigh(item)
        if piece and total + weight > _PIECE:
            yield opening + dump_json(piece)[1:-1]
            opening, piece, total = b",", [], 0
        if weight > _PIECE:
            yield opening
            yield from encode_pieces(item)
            opening = b","
        else:
            piece.append(item)
            total += weight
    if piece:
        yield opening + dump_json(piece)[1:-1]
    elif opening == b"[":
        yield b"["
    yield b"]"


def _encode_array(values: NDArray[Any]) -> Iterator[bytes]:
    row = values[0].size if values.ndim > 1 else 1
    if row > _PIECE:
        yield from _encode_items(iter(values))
        return
    rows, opening = _PIECE // max(row, 1), b"["
    for start in range(0, len(values), rows):
        # orjson encodes contiguous arrays only.
        yield opening + dump_json(np.ascontiguousarray(values[start : start + rows]))[1:-1]
        opening = b","
    yield b"]"


def _weigh(payload: Any) -> int:
    """About how many values a payload has; more than a piece if that is unknown."""
    match payload:
        case str():
            return 1 + len(payload) // _CHARACTERS_A_VALUE
        case dict():
            return _weigh_children(len(payload), payload.values())
        case list() | tuple():
            return _weigh_children(len(payload), payload)
        case np.ndarray():
            return payload.size
        case orjson.Fragment():
            # A fragment is copied, not encoded.
            return _PIECE // _FEW
        case Iterator():
            return _PIECE + 1
    return 1


def _weigh_children(count: int, children: Iterable[Any]) -> int:
    if count <= _FEW:
        return 1 + sum(map(_weigh, children))
    return count * _weigh(next(iter(children)))
