"""The number of fields and elements in an encoded protobuf message, counted before they become objects.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import time
from functools import cache
from typing import cast

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from runners.core.request_limits import RequestLimits

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED = {1: 8, 5: 4}
_ONE_BYTE = 127
_VARINT_BYTES = 10
_TOO_SHORT = "a field ends behind its message"
# The fields that are counted between two pauses, in about half a ms, and the length of a pause.
_AT_ONCE = 512
_PAUSE_SECONDS = 2e-5
_WIDTHS = {
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64), 8),
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32), 4),
}
_STRINGS = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})
# A message of this size is decoded in a few ms, whatever it contains.
_SMALL_BYTES = 16 * 2**10


def check_message_amounts(data: bytes, form: type[Message], limits: RequestLimits) -> None:
    """Check how many fields and elements an encoded message has; a small message cannot have many.

    Raises:
        LimitExceededError: there are more than the operator allows.
        google.protobuf.message.DecodeError: it is no message.
    """
    if len(data) > _SMALL_BYTES:
        counter = _Counter(data, limits)
        try:
            fields = counter.count(cast(Descriptor, form.DESCRIPTOR), 0, len(data), 1, 0)
        except IndexError as error:
            raise DecodeError(_TOO_SHORT) from error
        counter.check_fields(fields)


class _Counter:
    """Counts the fields and elements of one message."""

    def __init__(self, data: bytes, limits: RequestLimits) -> None:
        self._data = data
        self._limits = limits
        self._elements = 0

    def count(self, descriptor: Descriptor, start: int, end: int, depth: int, fields: int) -> int:
        """Count the fields between two positions, and return their number together with the fields before them."""
        data = self._data
        self._limits.check("max_json_depth", depth, "levels of nesting")
        kinds = _read_kinds(descriptor)
        # A field takes half a us in this loop, and three times as long with a call for each.
        while start < end:
            fields += 1
            if not fields % _AT_ONCE:
                self.check_fields(fields)
                # Without the pause another thread would wait 5 ms for the interpreter, each time.
                time.sleep(_PAUSE_SECONDS)
            tag = data[start]
            start += 1
            if tag > _ONE_BYTE:
                tag, start = self._read_varint(start - 1, end)
            wire_type = tag & 7
            if wire_type == _LENGTH_DELIMITED:
                length = data[start]
                start += 1
                if length > _ONE_BYTE:
                    length, start = self._read_varint(start - 1, end)
                stop = start + length
                if stop > end:
                    raise DecodeError(_TOO_SHORT)
                if length and (kind := kinds.get(tag >> 3)) is not None:
                    if isinstance(kind, int):
                        self._add_elements(start, stop, kind)
                    else:
                        fields = self.count(kind, start, stop, depth + 1, fields)
                start = stop
            elif wire_type == _VARINT:
                if data[start] > _ONE_BYTE:
                    _, start = self._read_varint(start, end)
                else:
                    start += 1
            elif (width := _FIXED.get(wire_type)) is not None:
                start += width
            else:
                raise DecodeError(f"there is no field of wire type {wire_type}")
        if start > end:
            raise DecodeError(_TOO_SHORT)
        return fields

    def check_fields(self, fields: int) -> None:
        self._limits.check("max_json_containers", fields, "fields of messages")

    def _add_elements(self, start: int, end: int, width: int) -> None:
        if width:
            self._elements += (end - start) // width
        else:
            # The last byte of each number is below 128.
            self._elements += int(np.count_nonzero(np.frombuffer(self._data, np.uint8, end - start, start) < 128))
        self._limits.check("max_json_values", self._elements, "elements of the message")

    def _read_varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for position in range(start, min(end, start + _VARINT_BYTES)):
            byte = self._data[position]
            value |= (byte & 127) << 7 * (position - start)
            if byte < 128:
                return value, position + 1
        raise DecodeError("a number does not end")


@cache
def _read_kinds(descriptor: Descriptor) -> dict[int, Descriptor | int | None]:
    """By field number: the field's message; or the bytes of its numbers, 0 if they vary; or None for a string."""
    return {
        number: field.message_type or (None if field.type in _STRINGS else _WIDTHS.get(field.type, 0))
        for number, field in descriptor.fields_by_number.items()
    }
