"""Elements in memory and in registers: half-width floats are stored narrow and computed in float32.

bfloat16 lives in uint16 buffers and is widened by a shift, so no pass of the compiler has to know
it; it is narrowed with round to nearest even, NaN kept a NaN.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tvmconv.compute.elementary import let

__all__ = ["narrow", "storage", "widen"]


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
