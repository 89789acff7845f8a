"""Pair products: two channels of a sum for one fused multiply-add and two additions.

Winograd's inner product (S. Winograd, "A New Algorithm for Inner Product", IEEE Transactions on
Computers C-17, 1968): of two channels a and b

    plus pair:    (w_b + x_a) (w_a + x_b)  = x_a w_a + x_b w_b + (w_a w_b + x_a x_b)
    minus pair:  -(w_b - x_a) (w_a - x_b)  = x_a w_a + x_b w_b - (w_a w_b + x_a x_b)

What is too much depends on the input or on the weights alone. The former is added up once for all
filters, the latter when the weights are packed, and sums begin with both taken away. It pays where
adders stand apart from the units that multiply: with two thirds of the channels in pairs both are
busy, and a core does 1.5 times the products that it has multipliers for.

Rounding: plus and minus pairs take turns, so that what is too much stays small where all numbers
have one sign; and both factors are scaled by powers of two to a mean magnitude of about 1, or the
larger one would drown the smaller. Inputs are scaled voxel by voxel, so that one of another size,
an infinity or NaN stays in its own outputs; weights filter by filter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.elementary import let
from tvmconv.compute.frame import i64

__all__ = ["MINUS", "PLUS", "Pairing", "scale", "scales"]

#: Functions of a sum, three registers of weights (a, b, alone) and the places of three inputs.
#: `codegen.instructions` has their code.
PLUS, MINUS = "pair_plus", "pair_minus"


#: Added to the bits of a float32, it carries into the exponent from the square root of 2 on.
_NEAREST = 0x4AFB0D
#: Of a power of two: bits of the mantissa, and the largest biased exponent that has an inverse.
_MANTISSA, _MOST = 23, 253


@dataclass(frozen=True)
class Pairing:
    """Which channels of a sum are pairs.

    Six streams of channels follow each other: a and b of the plus pairs, channels that stay alone,
    a and b of the minus pairs, others that stay alone. A step takes one of each. Of up to five
    channels behind them two are a plus pair, where there are three.
    """

    channels: int

    @property
    def steps(self) -> int:
        """Channels of a stream."""
        return self.channels // 6

    @property
    def pairs(self) -> list[tuple[int, int, int, int]]:
        """Runs of pairs: the first a, the first b, how many of either, the sign."""
        steps = self.steps
        found = [(0, steps, steps, 1), (3 * steps, 4 * steps, steps, -1)] if steps else []
        if self.channels - 6 * steps >= 3:
            found.append((6 * steps, 6 * steps + 1, 1, 1))
        return found

    @property
    def order(self) -> list[int]:
        """The channels in the order in which a sum takes them."""
        steps = self.steps
        inside = [stream * steps + step for step in range(steps) for stream in range(6)]
        return inside + list(range(6 * steps, self.channels))

    def excess(self, weights: np.ndarray) -> np.ndarray:
        """What the pairs add too much of scaled weights (.., channels, filters), (.., filters).

        Products of two float32 are exact in float64, so that the order alone counts.
        """
        wide = weights.astype(np.float64)
        total = np.zeros((*weights.shape[:-2], weights.shape[-1]))
        for a, b, count, sign in self.pairs:
            for k in range(count):
                total += sign * (wide[..., a + k, :] * wide[..., b + k, :])
        return total

    def emit_excess(self, total: Any, weight: Callable[[Any], Any]) -> None:
        """The same for one filter: added to ``total[0]``, of the ``weight`` of a channel."""
        for a, b, count, sign in self.pairs:
            with T.serial(i64(0), i64(count)) as k:
                one, other = (weight(i64(first) + k).astype("float64") for first in (a, b))
                product = one * other
                value = total[i64(0)] + product if sign > 0 else total[i64(0)] - product
                T.buffer_store(total, value, [i64(0)])

    def emit(
        self,
        width: int,
        vector: int,
        sums: Any,
        x: Callable[[Any, Any], Any],
        w: Callable[[Any, Any], Any],
        each: Callable[[Any], None] = lambda step: None,
        *,
        in_order: bool = False,
    ) -> None:
        """Emit the products of a register tile.

        Parameters
        ----------
        width : int
            Voxels of the tile.
        vector : int
            Filters of the tile: one register of them, so that each broadcast of an input is
            used once and is part of an instruction.
        sums : tvm.tirx.Buffer
            Local, (width, vector).
        x : callable
            ``x(voxel, channel)``, the scaled input.
        w : callable
            ``w(slot, lane)``: the scaled weight of a filter, of the channel ``order[slot]``.
        each : callable
            Emits what else each step of the loop does.
        in_order : bool
            Inputs lie as weights do: ``x`` is asked for the slot of a channel, too. Then the two
            can change their parts, for products of one input register and some filters.
        """

        def place(channel: Any, slot: Any) -> Any:
            return slot if in_order else channel

        steps = self.steps
        if steps:
            with T.serial(i64(0), i64(steps)) as step:
                each(step)
                for half, sign in ((0, 1), (3, -1)):
                    slot = step * i64(6) + i64(half)
                    a, b, alone = (
                        place(step + i64((half + k) * steps), slot + i64(k)) for k in range(3)
                    )
                    self._three(width, vector, sums, x, w, (a, b, alone), slot, sign)
        rest, first = self.channels - 6 * steps, i64(6 * steps)
        if rest >= 3:
            three = (first, first + i64(1), first + i64(2))
            self._three(width, vector, sums, x, w, three, first, 1)
        for k in range(3 if rest >= 3 else 0, rest):
            with T.unroll(i64(0), i64(width)) as i, T.vectorized(i64(0), i64(vector)) as v:
                product = w(first + i64(k), v) * x(i, first + i64(k))
                T.buffer_store(sums, sums[i, v] + product, [i, v])

    def _three(
        self, width: int, vector: int, sums: Any, x: Any, w: Any,
        channels: tuple[Any, Any, Any], slot: Any, sign: int,
    ) -> None:  # fmt: skip
        """A pair and a channel alone, whose product needs no adder."""
        held = T.sblock_alloc_buffer((i64(3), i64(vector)), "float32", scope="local")
        whole = tirx.Ramp(i64(0), i64(1), vector)
        for k in range(3):
            T.buffer_store(held, w(slot + i64(k), whole), [i64(k), whole])
        weights = [held[i64(k), whole] for k in range(3)]
        name = PLUS if sign > 0 else MINUS
        for number in range(width):
            i = i64(number)
            inputs = [tirx.address_of(x(i, channel)) for channel in channels]
            before = sums[i, whole]
            total = tirx.call_pure_extern(f"float32x{vector}", name, before, *weights, *inputs)
            T.buffer_store(sums, total, [i, whole])


def scale(mean: Any, lanes: int = 1) -> tuple[Any, Any]:
    """Powers of two for numbers of a mean magnitude, float32: the factor, and its inverse.

    The inverse is 0 for a mean of 0, so that sums of nothing are exact. Means without end, and
    NaN, have a finite factor. Only inside of a `Formula`.
    """
    kind = "int32" if lanes == 1 else f"int32x{lanes}"
    real = "float32" if lanes == 1 else f"float32x{lanes}"

    def const(value: int) -> Any:
        one = tirx.const(value, "int32")
        return one if lanes == 1 else tirx.Broadcast(one, lanes)

    bits = tirx.reinterpret(kind, mean) + const(_NEAREST)
    exponent = tirx.shift_right(bits, const(_MANTISSA))
    found = let(tirx.max(tirx.min(exponent, const(_MOST)), const(0)), lambda value: value)
    factor = tirx.shift_left(const(254) - found, const(_MANTISSA))
    inverse = tirx.shift_left(found, const(_MANTISSA))
    return tirx.reinterpret(real, factor), tirx.reinterpret(real, inverse)


def scales(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What `scale` gives, in NumPy."""
    bits = np.ascontiguousarray(mean, np.float32).view(np.int32)
    with np.errstate(over="ignore"):
        exponent = np.clip((bits + np.int32(_NEAREST)) >> _MANTISSA, 0, _MOST).astype(np.int32)
    factor = ((254 - exponent) << _MANTISSA).astype(np.int32).view(np.float32)
    return factor, (exponent << _MANTISSA).astype(np.int32).view(np.float32)
