"""The bytes of vectors in the types that vLLM's `embed_dtype` and `endianness` name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EmbedDtype = Literal["float32", "float16", "bfloat16", "fp8_e4m3", "fp8_e5m2"]
Endianness = Literal["native", "big", "little"]

# Of the 8-bit types (https://arxiv.org/abs/2209.05433): the bits of the mantissa, the exponent's bias, and the code of
# what is larger than all numbers. As in torch, that is the largest number itself for E4M3, and infinity for E5M2.
_FP8 = {"fp8_e4m3": (3, 7, 0x7E), "fp8_e5m2": (2, 15, 0x7C)}
_SIGN = 0x80


@dataclass(frozen=True, slots=True)
class ByteFormat:
    """How numbers are written as bytes."""

    dtype: EmbedDtype = "float32"
    endianness: Endianness = "native"

    def encode(self, values: NDArray[np.float32]) -> bytes:
        """The bytes of the numbers, in C order; rounded to nearest, ties to even."""
        codes = _convert(np.ascontiguousarray(values), self.dtype)
        # All machines that this server runs on are little-endian, so that is what `native` means.
        order = codes.dtype.newbyteorder(">" if self.endianness == "big" else "<")
        return codes.astype(order, copy=False).tobytes()


def _convert(values: NDArray[np.float32], dtype: EmbedDtype) -> NDArray[Any]:
    match dtype:
        case "float32":
            return values
        case "float16":
            with np.errstate(over="ignore"):
                return values.astype(np.float16)
        case "bfloat16":
            bits = values.view(np.uint32)
            last_kept = (bits >> np.uint32(16)) & np.uint32(1)
            return ((bits + np.uint32(0x7FFF) + last_kept) >> np.uint32(16)).astype(np.uint16)
    return _convert_to_fp8(values, dtype)


def _convert_to_fp8(values: NDArray[np.float32], dtype: str) -> NDArray[np.uint8]:
    numbers = _fp8_numbers(dtype)
    middles = (numbers[:-1] + numbers[1:]) / 2
    magnitudes = np.abs(values).astype(np.float64)
    # The number below a middle, for a magnitude that equals it.
    codes = np.searchsorted(middles, magnitudes)
    is_middle = middles.take(codes, mode="clip") == magnitudes
    codes = codes + (is_middle & (codes % 2 == 1))
    signed: NDArray[np.int64] = codes | np.where(np.signbit(values), _SIGN, 0)
    return signed.astype(np.uint8)


@cache
def _fp8_numbers(dtype: str) -> NDArray[np.float64]:
    """The numbers of the codes from 0 to the largest one: float64 [codes]."""
    mantissa_bits, bias, last = _FP8[dtype]
    codes = np.arange(last + 1)
    exponents, mantissas = codes >> mantissa_bits, (codes & (2**mantissa_bits - 1)) / 2**mantissa_bits
    return np.where(exponents == 0, mantissas * 2.0 ** (1 - bias), (1 + mantissas) * 2.0 ** (exponents - bias))
