"""Tensors under the Open Inference Protocol's datatypes, to and from JSON and its binary extension.

The binary extension is Triton's `binary_tensor_data`: a BYTES element is its length as a 4-byte little-endian number
and then its bytes; all other types are their row-major little-endian bytes. The raw contents of gRPC are the same.

Errors call a client's tensors inputs and a predictor's tensors outputs, by `kind`.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from runners.core.errors import InputError
from runners.core.request_limits import RequestLimits

# numpy has no type for BF16, which is float32 in memory.
BFLOAT16 = "BF16"
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
    "FP16": np.dtype("<f2"),
    BFLOAT16: np.dtype("<f4"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
BYTES = "BYTES"
DATATYPES = (*DTYPES, BYTES)
_NOT_IN_JSON = frozenset({"FP16", BFLOAT16})
MAX_DIMENSIONS = 8
# The bytes of the length before each string.
_LENGTH_BYTES = 4
MAX_DIMENSION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named tensor; `flat` holds its elements in row-major order, strings for BYTES."""

    name: str
    datatype: str
    shape: list[int]
    flat: NDArray[Any] | list[str]

    def to_binary(self) -> bytes | memoryview:
        """The elements in the form of the binary extension; numbers that already have this form are not copied."""
        if isinstance(self.flat, list):
            encoded = [element.encode() for element in self.flat]
            return b"".join(part for element in encoded for part in (struct.pack("<I", len(element)), element))
        if self.datatype == BFLOAT16:
            return _to_bfloat16(self.flat).tobytes()
        return np.ascontiguousarray(self.flat, DTYPES[self.datatype]).data.cast("B")


def check_datatype(name: str, datatype: str, kind: str = "input") -> str:
    """The datatype in capitals; KServe's clients also send lower case.

    Raises:
        InputError: there is no such datatype.
    """
    if (capitals := datatype.upper()) not in DATATYPES:
        raise InputError(f"{kind} {name!r} has the datatype {datatype!r}; there are {', '.join(DATATYPES)}")
    return capitals


def check_placement(name: str, parameters: Container[str]) -> None:
    """
    Raises:
        InputError: the data is in shared memory, which Triton's clients can use.
    """
    if "shared_memory_region" in parameters:
        raise InputError(f"input {name!r} is in shared memory, which this server does not read: send the data")


def check_elements(name: str, datatype: str, size: int, shape: Sequence[int], limits: RequestLimits) -> None:
    """Check how many strings a tensor of this size can have, before any of them is read.

    Raises:
        LimitExceededError: there are more than the operator allows.
    """
    if datatype.upper() == BYTES:
        elements = min(size // _LENGTH_BYTES, math.prod(shape[:MAX_DIMENSIONS]))
        limits.check("max_json_values", elements, f"elements of input {name!r}")


def check_shape(name: str, shape: Sequence[int], elements: int, kind: str = "input") -> list[int]:
    """The shape of a tensor that has `elements` elements; `[]` is one element.

    Raises:
        InputError: the tensor cannot have the shape.
    """
    if len(shape) > MAX_DIMENSIONS or not all(0 <= size <= MAX_DIMENSION for size in shape):
        raise InputError(
            f"{kind} {name!r} has the shape {list(shape)[: MAX_DIMENSIONS + 1]}; there may be {MAX_DIMENSIONS} "
            f"dimensions of 0 to {MAX_DIMENSION}"
        )
    if (wanted := math.prod(shape)) != elements:
        raise InputError(
            f"{kind} {name!r} has the shape {list(shape)}, which is {wanted} elements, but {elements} are given"
        )
    return list(shape)


def tensor_from_json(name: str, datatype: str, shape: Sequence[int], data: Any, kind: str = "input") -> Tensor:
    """A tensor from its decoded `data`, flat or nested as the shape is.

    Raises:
        InputError: the data does not have that type or shape, or JSON cannot carry the type.
    """
    datatype = check_datatype(name, datatype, kind)
    if datatype in _NOT_IN_JSON:
        # The text is KServe's.
        raise InputError(
            f"Sending {datatype} data via JSON is not supported. Please use the binary data format for {kind} {name}"
        )
    values = _read_elements(data, datatype, shape, f"the data of {kind} {name!r}")
    if datatype == BYTES:
        return Tensor(name, datatype, check_shape(name, shape, len(values), kind), values)
    return Tensor(name, datatype, check_shape(name, shape, len(values), kind), to_array(name, datatype, values, kind))


def to_array(name: str, datatype: str, values: Sequence[Any], kind: str = "input") -> NDArray[Any]:
    """Python numbers as an array.

    Raises:
        InputError: a number is out of the datatype's range.
    """
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, dtype=DTYPES[datatype])
    except OverflowError as error:
        raise InputError(f"a number of {kind} {name!r} is out of the range of {datatype}") from error
    if datatype == "FP32" and not np.isfinite(array).all():
        raise InputError(f"a number of {kind} {name!r} is out of the range of {datatype}")
    return array


def tensor_from_binary(
    name: str, datatype: str, shape: Sequence[int], buffer: memoryview, kind: str = "input"
) -> Tensor:
    """A tensor from its bytes; numbers are not copied.

    Raises:
        InputError: the bytes do not fit the datatype and the shape.
    """
    datatype = check_datatype(name, datatype, kind)
    if datatype == BYTES:
        strings = _read_strings(buffer, math.prod(shape), f"the data of {kind} {name!r}")
        return Tensor(name, datatype, check_shape(name, shape, len(strings), kind), strings)
    size = 2 if datatype == BFLOAT16 else DTYPES[datatype].itemsize
    if len(buffer) % size:
        raise InputError(f"the data of {kind} {name!r} has {len(buffer)} bytes, and {datatype} has {size} each")
    shape = check_shape(name, shape, len(buffer) // size, kind)
    if datatype == BFLOAT16:
        return Tensor(name, datatype, shape, _from_bfloat16(np.frombuffer(buffer, "<u2")))
    if datatype == "BOOL" and len(buffer) and np.frombuffer(buffer, np.uint8).max() > 1:
        raise InputError(f"the data of {kind} {name!r} has a byte that is neither 0 nor 1, which BOOL has")
    return Tensor(name, datatype, shape, np.frombuffer(buffer, DTYPES[datatype]))


def _list_type(datatype: str) -> Any:
    """The type as which msgspec reads the elements of a datatype."""
    dtype = DTYPES.get(datatype)
    if dtype is None:
        return list[str]
    if dtype.kind not in "iu":
        return list[bool] if dtype.kind == "b" else list[float]
    limits = np.iinfo(dtype)
    # numpy checks numbers of 64 bits: msgspec's bounds are smaller.
    return list[int] if limits.bits == 64 else list[Annotated[int, Meta(ge=int(limits.min), le=int(limits.max))]]


_list_types = {datatype: _list_type(datatype) for datatype in DATATYPES}


def _read_elements(data: Any, datatype: str, shape: Sequence[int], what: str) -> list[Any]:
    elements = data
    if isinstance(data, list) and any(isinstance(element, list) for element in data):
        elements = []
        if not _flatten(data, shape, elements):
            raise InputError(f"{what} is nested, but not as the shape {list(shape)} says")
    try:
        read: list[Any] = msgspec.convert(elements, _list_types[datatype])
    except msgspec.ValidationError as error:
        raise InputError(f"{what} is not as expected: {error}") from error
    return read


def _flatten(nested: list[Any], shape: Sequence[int], flat: list[Any]) -> bool:
    """Append the elements to `flat` in row-major order, and return whether they are nested as the shape says."""
    if not shape or len(nested) != shape[0]:
        return False
    if len(shape) == 1:
        flat += nested
        return not any(isinstance(element, list) for element in nested)
    return all(isinstance(row, list) and _flatten(row, shape[1:], flat) for row in nested)


def _read_strings(buffer: memoryview, max_count: int, what: str) -> list[str]:
    """The elements; reading stops after `max_count` + 1 of them."""
    strings: list[str] = []
    position = 0
    while position < len(buffer) and len(strings) <= max_count:
        if position + 4 > len(buffer):
            raise InputError(f"{what} ends inside the length of element {len(strings)}")
        (length,) = struct.unpack_from("<I", buffer, position)
        position += 4
        if position + length > len(buffer):
            raise InputError(
                f"{what} says that element {len(strings)} has {length} bytes, but {len(buffer) - position} are left"
            )
        strings.append(read_text(buffer[position : position + length], len(strings), what))
        position += length
    return strings


def read_text(element: bytes | memoryview, position: int, what: str) -> str:
    """One element of a BYTES tensor.

    Raises:
        InputError: it is not UTF-8.
    """
    try:
        return str(element, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"element {position} of {what} is not UTF-8") from error


def _from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """A bfloat16 is the upper half of a float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def _to_bfloat16(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Rounded to the nearest, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).astype("<u2")
