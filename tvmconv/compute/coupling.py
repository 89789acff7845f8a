"""Products of bfloat16 numbers as they are stored, two channels a lane, by one instruction.

``vdpbf16ps`` of AVX-512 takes registers whose 32-bit lanes hold two bfloat16 numbers, and adds both
products of a lane to its float32 sum: nothing is widened, and a register holds twice the channels.
A product of two such numbers is exact in float32, but subnormal numbers count as zeros.

A weight is what Keras' cast makes of it, a bfloat16 number too, so that two are packed into the
bits of one float32: the first of two channels in the low half, as inputs lie in memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx

__all__ = ["PRODUCTS", "add_products", "joined", "joined_arrays"]

#: Function of a register of sums, of inputs as they are stored, and of weights.
#: `codegen.instructions` has its code.
PRODUCTS = "bfloat16_products"

_HIGH = 0xFFFF0000


def add_products(sums: Any, inputs: Any, weights: Any) -> Any:
    """A register of sums with the products of two channels a lane."""
    return tirx.call_extern(str(sums.ty), PRODUCTS, sums, inputs, weights)


def joined(first: Any, second: Any) -> Any:
    """Two weights that were rounded to bfloat16, float32 values, as one lane."""
    low, high = (tirx.reinterpret("uint32", one) for one in (first, second))
    low = tirx.shift_right(low, tirx.const(16, "uint32"))
    high = tirx.bitwise_and(high, tirx.const(_HIGH, "uint32"))
    return tirx.reinterpret("float32", tirx.bitwise_or(high, low))


def joined_arrays(weights: np.ndarray) -> np.ndarray:
    """The same in NumPy, of neighbours along the last axis."""
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    return (bits[..., 1::2] & np.uint32(_HIGH) | bits[..., ::2] >> 16).view(np.float32)
