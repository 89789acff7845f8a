"""Elements in memory and in registers: half-width floats are stored narrow and computed in float32.

bfloat16 lives in uint16 buffers and is widened by a shift, so no pass of the compiler has to know
it; it is narrowed with round to nearest even, NaN kept a NaN.

TF32 is float32 with 10 bits of mantissa, as tensor cores take it: rounded to nearest, ties away
from zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

from tvmconv.compute.elementary import let

__all__ = ["narrow", "round_tf32", "storage", "tf32", "widen"]

#: The bits of a float32 that TF32 has not, and the half of its last one.
_TF32_REST, _TF32_HALF = 0x1FFF, 0x1000
_SIGN, _INFINITY, _QUIET = 0x7FFFFFFF, 0x7F800000, 0x400000


def storage(dtype: str) -> str:
    """The dtype of a buffer that holds ``dtype``."""
    return "uint16" if dtype == "bfloat16" else dtype


def widen(value: Any, dtype: str, to: str) -> Any:
    """A stored element of ``dtype`` as a value of ``to`` (float32 or float64)."""
    if dtype == "bfloat16":
        wide = tirx.reinterpret("float32", tirx.shift_left(value.astype("uint32"), _u32(16)))
        return wide if to == "float32" else wide.astype(to)
    return value if dtype == to else value.astype(to)


def narrow(value: Any, dtype: str) -> Any:
    """A float32 or float64 value rounded to nearest even, as the element stored for ``dtype``."""
    if dtype != "bfloat16":
        return value if str(value.ty) == dtype else value.astype(dtype)
    value = value if str(value.ty) == "float32" else value.astype("float32")
    return let(tirx.reinterpret("uint32", value), _round)


def tf32(value: Any) -> Any:
    """A float32 value rounded to TF32."""
    bits, kept = tirx.reinterpret("uint32", value), _u32(0xFFFFFFFF ^ _TF32_REST)
    near = tirx.bitwise_and(bits + _u32(_TF32_HALF), kept)
    quiet = tirx.bitwise_and(tirx.bitwise_or(bits, _u32(_QUIET)), kept)
    nan = tirx.bitwise_and(bits, _u32(_SIGN)) > _u32(_INFINITY)
    return tirx.reinterpret("float32", tirx.Select(nan, quiet, near))


def round_tf32(values: np.ndarray) -> np.ndarray:
    """The same in NumPy."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    near = bits + np.uint32(_TF32_HALF)
    quiet = bits | np.uint32(_QUIET)
    found = np.where(bits & np.uint32(_SIGN) > _INFINITY, quiet, near)
    return (found & np.uint32(0xFFFFFFFF ^ _TF32_REST)).astype(np.uint32).view(np.float32)


def _round(bits: Any) -> Any:
    odd = tirx.bitwise_and(tirx.shift_right(bits, _u32(16)), _u32(1))
    rounded = tirx.shift_right(bits + _u32(0x7FFF) + odd, _u32(16))
    # Adding to a NaN's bits could carry it into an infinity: keep its top bits and set the quiet
    # one. Without a choice between two values, which would become a branch for every lane.
    quiet = tirx.bitwise_or(tirx.shift_right(bits, _u32(16)), _u32(0x40))
    nan = tirx.bitwise_and(bits, _u32(0x7FFFFFFF)) > _u32(0x7F800000)
    mask = _u32(0) - nan.astype("uint32")
    other = tirx.bitwise_and(tirx.bitwise_xor(quiet, rounded), mask)
    return tirx.bitwise_xor(rounded, other).astype("uint16")


def _u32(value: int) -> Any:
    return tirx.const(value, "uint32")
