"""The amounts in a JSON text, counted before it becomes objects, and its decoding piece by piece.

Both find the brackets, commas and colons first. Decoding stops all other threads (2 ms per MiB of strings), so a large
text is decoded in pieces, each by msgspec, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from protocol.http.offload import give_way
from runners.core.errors import LimitExceededError
from runners.core.request_limits import RequestLimits

# The most bytes that are searched or decoded at a time, in some ms.
_PIECE = 2**20
_OPENING, _CLOSING, _COMMA, _COLON, _QUOTE = b"[{", b"]}", b",", b":", b'"'
_COUNTED = _OPENING + _COMMA + _COLON
_PAIRS = {b"[]", b"{}"}
_BLANK = b" \t\r\n"
# The length of an escape such as \u0061.
_LONGEST_ESCAPE = 6
# Python refuses to parse numbers with more digits than a few thousand.
_LONGEST_NUMBER = 2**16
_STEPS = np.zeros(256, dtype=np.int8)
_STEPS[list(_OPENING)], _STEPS[list(_CLOSING)] = 1, -1
_IS_STRUCTURE = np.isin(np.arange(256), list(_OPENING + _CLOSING + _COMMA + _COLON + _QUOTE))


@dataclass(frozen=True, slots=True)
class JsonStructure:
    """The brackets, commas and colons of a JSON text outside of its strings; the text may still be wrong.

    Attributes:
        positions: int64 [characters].
        characters: uint8 [characters].
        depths: int32 [characters], how many brackets are open after each.
    """

    positions: NDArray[np.int64]
    characters: NDArray[np.uint8]
    depths: NDArray[np.int32]


def check_json_amounts(body: bytes, limits: RequestLimits) -> None:
    """Check how many values, containers and levels a JSON text has at most; a small text takes a microsecond.

    Raises:
        LimitExceededError: there are more than the operator allows.
    """
    # This count includes the characters in strings: an upper bound, which few texts exceed.
    if len(body) <= limits.max_json_containers and len(body) <= limits.max_json_values:
        exceeds = body.count(b"[") + body.count(b"{") > limits.max_json_depth
    else:
        opening, commas, colons = _count_characters(body)
        exceeds = (
            opening > limits.max_json_depth
            or opening + colons > limits.max_json_containers
            or opening + commas + 1 > limits.max_json_values
        )
    if exceeds:
        find_structure(body, limits)


def find_structure(body: bytes, limits: RequestLimits) -> JsonStructure:
    """Find a text's structure, and check its amounts.

    Raises:
        LimitExceededError: there are more values, containers or levels than the operator allows.
    """
    parts: list[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.int32]]] = []
    opening = commas = colons = depth = 0
    for positions, characters in _find_characters(body):
        depths = depth + np.cumsum(_STEPS[characters], dtype=np.int32)
        counts = np.bincount(characters, minlength=256)
        opening += int(counts[list(_OPENING)].sum())
        commas, colons = commas + int(counts[_COMMA[0]]), colons + int(counts[_COLON[0]])
        if len(depths):
            depth = int(depths[-1])
            limits.check("max_json_depth", int(depths.max()), "levels of nesting")
        limits.check("max_json_containers", opening + colons, "lists, objects and members")
        limits.check("max_json_values", opening + commas + 1, "JSON values")
        parts.append((positions, characters, depths))
    return JsonStructure(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _count_characters(body: bytes) -> tuple[int, int, int]:
    """Opening brackets, commas and colons, those in strings included."""
    counts = [0] * len(_COUNTED)
    for start in range(0, len(body), _PIECE):
        for index, character in enumerate(_COUNTED):
            counts[index] += body.count(character, start, start + _PIECE)
    lists, objects, commas, colons = counts
    return lists + objects, commas, colons


def _find_characters(body: bytes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint8]]]:
    """The positions of a text's structure outside of strings, piece by piece."""
    in_string = is_escaped = False
    for start in range(0, max(len(body), 1), _PIECE):
        give_way()
        piece = body[start : start + _PIECE]
        if is_escaped:
            piece = b"_" + piece[1:]
        if b"\\" in piece:
            piece = piece.replace(rb"\\", b"__").replace(rb"\"", b"__")
        is_escaped = piece.endswith(b"\\")
        values = np.frombuffer(piece, np.uint8)
        places = np.flatnonzero(_IS_STRUCTURE[values])
        characters = values[places]
        is_quote = characters == _QUOTE[0]
        inside = (np.cumsum(is_quote) + in_string) % 2 == 1
        in_string = bool(inside[-1]) if len(inside) else in_string
        outside = ~(inside | is_quote)
        yield places[outside] + start, characters[outside]


def decode_in_pieces(body: bytes, limits: RequestLimits) -> Any:
    """Decode a JSON text as msgspec does, in calls that each read about a MiB, or one string.

    Raises:
        LimitExceededError: there are more values, containers or levels than the operator allows.
        msgspec.DecodeError, UnicodeDecodeError: it is no JSON.
    """
    structure = find_structure(body, limits)
    depths = structure.depths
    if len(depths) and (depths[-1] != 0 or depths.min() < 0):
        raise msgspec.DecodeError("JSON is malformed: its brackets do not match")
    return _Pieces(body, structure, limits).decode(0, len(body), 0, len(depths))


class _Pieces:
    """Decodes one text in pieces."""

    def __init__(self, body: bytes, structure: JsonStructure, limits: RequestLimits) -> None:
        self._body = body
        self._limits = limits
        self._view = memoryview(body)
        self._structure = structure

    def decode(self, start: int, end: int, first: int, last: int) -> Any:
        """Decode the value between two positions, whose structure is in `first:last`."""
        give_way()
        if end - start > _PIECE:
            start, end = self._strip(start, end)
        if end - start <= _PIECE:
            return msgspec.json.decode(self._view[start:end])
        if first == last:
            return self._decode_scalar(self._body[start:end])
        structure = self._structure
        opening, closing = int(structure.positions[first]), int(structure.positions[last - 1])
        pair = self._body[opening : opening + 1] + self._body[closing : closing + 1]
        if pair not in _PAIRS or opening != start or closing != end - 1:
            raise msgspec.DecodeError("JSON is malformed: a list or an object was expected")
        inner_start, inner_end = self._strip(opening + 1, closing)
        if inner_start == inner_end:
            return [] if pair == b"[]" else {}
        pieces = self._split(opening + 1, closing, first + 1, last - 1)
        if pair == b"[]":
            return [item for piece in pieces for item in self._decode_items(*piece)]
        return {name: value for piece in pieces for name, value in self._decode_members(*piece).items()}

    def _strip(self, start: int, end: int) -> tuple[int, int]:
        """A range without the white space around it; a MiB of it takes some ms to skip."""
        while start < end:
            piece = self._body[start : min(start + _PIECE, end)]
            rest = piece.lstrip(_BLANK)
            start += len(piece) - len(rest)
            if rest:
                break
        while start < end:
            piece = self._body[max(end - _PIECE, start) : end]
            rest = piece.rstrip(_BLANK)
            end -= len(piece) - len(rest)
            if rest:
                break
        return start, end

    def _decode_scalar(self, text: bytes) -> Any:
        """Decode a string, a number or a word in one call, for which it must not be long."""
        if text.startswith(_QUOTE):
            characters = self._limits.max_text_characters
            if len(text) > characters * _LONGEST_ESCAPE + 2:
                raise LimitExceededError(len(text) - 2, "bytes of a text", "max_text_characters", characters)
        elif len(text) > _LONGEST_NUMBER:
            raise msgspec.DecodeError("JSON is malformed: a number or a word is too long")
        return msgspec.json.decode(text)

    def _split(self, start: int, end: int, first: int, last: int) -> Iterator[tuple[int, int, int, int, bool]]:
        """The ranges of children, as for `decode`, and whether each is one child that is larger than a piece."""
        inner = slice(first, last)
        depth = self._structure.depths[first - 1]
        is_comma = (self._structure.characters[inner] == _COMMA[0]) & (self._structure.depths[inner] == depth)
        commas = np.flatnonzero(is_comma) + first
        positions = self._structure.positions[commas]
        while end - start > _PIECE and len(commas):
            give_way()
            fitting = max(1, int(np.searchsorted(positions, start + _PIECE)))
            cut, comma = int(positions[fitting - 1]), int(commas[fitting - 1])
            yield start, cut, first, comma, cut - start > _PIECE
            start, first = cut + 1, comma + 1
            commas, positions = commas[fitting:], positions[fitting:]
        yield start, end, first, last, end - start > _PIECE

    def _decode_items(self, start: int, end: int, first: int, last: int, is_single: bool) -> list[Any]:
        if is_single:
            return [self.decode(start, end, first, last)]
        items: list[Any] = msgspec.json.decode(b"".join((b"[", self._view[start:end], b"]")))
        _check_some(items)
        return items

    def _decode_members(self, start: int, end: int, first: int, last: int, is_single: bool) -> dict[str, Any]:
        if not is_single:
            members: dict[str, Any] = msgspec.json.decode(b"".join((b"{", self._view[start:end], b"}")))
            _check_some(members)
            return members
        if first == last or self._structure.characters[first] != _COLON[0]:
            raise msgspec.DecodeError("JSON is malformed: an object's member has no name")
        colon = int(self._structure.positions[first])
        name = msgspec.json.decode(self._view[start:colon], type=str)
        return {name: self.decode(colon + 1, end, first + 1, last)}


def _check_some(children: Sized) -> None:
    """Between two commas there must be something."""
    if not len(children):
        raise msgspec.DecodeError("JSON is malformed: a value is missing beside a comma")
