"""How many messages and elements there are in an encoded protobuf message, counted before they become objects.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from typing import cast

import numpy as np
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from runners.request_limits import RequestLimits

_VARINT_BYTES = 10
_WIDTHS = {
    **dict.fromkeys((FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_SFIXED64), 8),
    **dict.fromkeys((FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_FIXED32, FieldDescriptor.TYPE_SFIXED32), 4),
}
_STRINGS = frozenset({FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES})
# Of a message that can be decoded in a few ms whatever is in it.
_SMALL_BYTES = 16 * 2**10


def check_amounts(data: bytes, form: type[Message], limits: RequestLimits) -> None:
    """Check how many messages and elements an encoded message has; a small one, which cannot have many, is not read.

    Raises:
        LimitExceededError: there are more than the operator allows.
        google.protobuf.message.DecodeError: it is no message.
    """
    if len(data) > _SMALL_BYTES:
        _Counter(data, limits).count(cast(Descriptor, form.DESCRIPTOR), 0, len(data), 1)


class _Counter:
    """A message that is being read."""

    def __init__(self, data: bytes, limits: RequestLimits) -> None:
        self._data = data
        self._limits = limits
        self._messages = self._elements = 0

    def count(self, descriptor: Descriptor, start: int, end: int, depth: int) -> None:
        """Count what is between two positions."""
        limits = self._limits
        limits.check("max_json_depth", depth, "levels of nesting")
        self._messages += 1
        limits.check("max_json_containers", self._messages, "messages and map entries")
        fields = descriptor.fields_by_number
        while start < end:
            tag, start = self._read_varint(start, end)
            self._add(1)
            match tag & 7:
                case 0:
                    _, start = self._read_varint(start, end)
                case 1:
                    start += 8
                case 5:
                    start += 4
                case 2:
                    length, start = self._read_varint(start, end)
                    field = fields.get(tag >> 3)
                    if start + length > end:
                        raise DecodeError("a field ends behind its message")
                    if field is not None and field.message_type is not None:
                        self.count(field.message_type, start, start + length, depth + 1)
                    elif field is not None and field.type not in _STRINGS:
                        self._add(self._count_packed(field, start, start + length))
                    start += length
                case kind:
                    raise DecodeError(f"there is no field of wire type {kind}")
        if start > end:
            raise DecodeError("a field ends behind its message")

    def _add(self, elements: int) -> None:
        self._elements += elements
        if self._elements > self._limits.max_json_values:
            self._limits.check("max_json_values", self._elements, "elements of the message")

    def _count_packed(self, field: FieldDescriptor, start: int, end: int) -> int:
        if (width := _WIDTHS.get(field.type)) is not None:
            return (end - start) // width
        # The last byte of each number is below 128.
        return int(np.count_nonzero(np.frombuffer(self._data, np.uint8, end - start, start) < 128))

    def _read_varint(self, start: int, end: int) -> tuple[int, int]:
        value = 0
        for position in range(start, min(end, start + _VARINT_BYTES)):
            byte = self._data[position]
            value |= (byte & 127) << 7 * (position - start)
            if byte < 128:
                return value, position + 1
        raise DecodeError("a number does not end")
