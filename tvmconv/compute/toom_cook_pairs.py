"""Products of pairs of channels in the Toom-Cook form (`pairing`).

The sums of inputs of a tile are scaled by one power of two, from the mean magnitude of the inputs
that they read, and what its pairs add too much is made for each of them when all are in scratch. A
tile reads no other's sums, so that an input of another size, an infinity or NaN stays in its own
tiles: where the mean is not finite, all of the tile is NaN. A result is scaled back once, when its
products are transformed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import LINE_BYTES, Region, i64
from tvmconv.compute.point_pairs import balance, finite_scale, growth, rounded
from tvmconv.compute.shuffle import lanes, totals
from tvmconv.compute.toom_cook_fetch import Fetches

__all__ = ["NEAR", "Operands", "Pairs"]

#: Bytes of one point's weights up to which the next point's are brought into the first-level cache
#: too, else into the second.
NEAR = 16 << 10
_ZERO = tirx.const(0, "float32")


@dataclass(frozen=True)
class Operands:
    """One register tile: its weights, its sums of inputs, and where its products go.

    ``source`` is the first tile whose sums in ``column`` are read, ``tile`` the one they are for.
    """

    weights: Region
    place: tuple[Any, ...]
    column: Any
    source: Sequence[Any]
    tile: tuple[Any, Any, Any]
    point: Any


@dataclass(frozen=True)
class Pairs(Fetches):
    """Scales sums of inputs and makes what their pairs add too much."""

    @property
    def _magnitudes(self) -> Region:
        """Per input of a block, its sizes added up over registers of channels."""
        form = self.form
        shape = (*form.inputs_shape[:3], self.vector)
        return Region(self.frame.scratch, form.pair_offsets[0], shape)

    @property
    def _excess(self) -> Region:
        """Per tile and column, what sums begin with."""
        form = self.form
        shape = (*form.tiles_shape, form.padded_columns)
        return Region(self.frame.scratch, form.pair_offsets[1], shape)

    @property
    def _inverses(self) -> Region:
        """Per tile, what scales its results back."""
        form = self.form
        return Region(self.frame.scratch, form.pair_offsets[2], form.tiles_shape)

    def measure(self) -> None:
        """Add up the sizes of each input of a block."""
        form, vector = self.form, self.vector
        source = Region(self.frame.scratch, 0, form.inputs_shape)
        total = self.local(1, vector)
        whole = lanes(i64(0), vector)
        with T.grid(*map(i64, form.inputs_shape[:3])) as place:
            T.buffer_store(total, tirx.Broadcast(_ZERO, vector), [i64(0), whole])
            for start, count, size in finish.chunks(form.work.plan.in_channels, vector):
                with T.serial(i64(0), i64(count)) as part:
                    at = source.at(*place, i64(start) + part * i64(size))
                    value = self.frame.scratch[_some(at, size)]
                    cell = [i64(0), _some(i64(0), size)]
                    T.buffer_store(total, total[tuple(cell)] + tirx.abs(value), cell)
            at = lanes(self._magnitudes.at(*place, i64(0)), vector)
            T.buffer_store(self.frame.scratch, total[i64(0), whole], [at])
            channels = form.work.plan.in_channels
            with T.serial(i64(0), i64(form.channels - channels)) as c:
                # Sums of these are read, and must be finite.
                source.store(_ZERO, *place, i64(channels) + c)

    def scale(self, tile: Sequence[Any], begin: Sequence[Any], reach: Sequence[int]) -> Any:
        """What the sums of a tile are multiplied with: a cell for each of `powers`.

        The tile reads ``reach`` inputs from ``begin`` on.
        """
        vector, form = self.vector, self.form
        total, factors = self.local(1, vector), self.local(len(self.powers))
        mean = self.local(1)
        whole = lanes(i64(0), vector)
        count = math.prod(reach) * form.work.plan.in_channels
        part = tirx.Broadcast(tirx.const(growth(form.axes)[0] / count, "float32"), vector)
        T.buffer_store(total, tirx.Broadcast(_ZERO, vector), [i64(0), whole])
        with T.grid(i64(reach[0]), i64(reach[1])) as (d, h):
            for w in range(reach[2]):
                place = (begin[0] + d, begin[1] + h, begin[2] + i64(w))
                at = lanes(self._magnitudes.at(*place, i64(0)), vector)
                value = total[i64(0), whole] + self.frame.scratch[at] * part
                T.buffer_store(total, value, [i64(0), whole])
        T.buffer_store(mean, totals(vector, "float32", [total[i64(0), whole]]), [i64(0)])
        factor, inverse = Formula(finite_scale, "float32", (1,)).at(mean[i64(0)], i64(0))
        self._inverses.store(inverse, *tile)
        for number, power in enumerate(self.powers):
            value = factor * tirx.const(2.0**power, "float32")
            T.buffer_store(factors, value, [i64(number)])
        return factors

    @property
    def powers(self) -> list[int]:
        """The powers of two by which sums of inputs differ (`balance`)."""
        choices = [set(balance(axis).values()) for axis in self.form.axes]
        return sorted({rounded(sum(some)) for some in itertools.product(*choices)})

    def power(self, kinds: Sequence[str]) -> Any:
        """Which of them a sum of these kinds has."""
        axes = zip(self.form.axes, kinds, strict=True)
        return i64(self.powers.index(rounded(sum(balance(axis)[kind] for axis, kind in axes))))

    def excesses(self, tile: Sequence[Any], columns: int) -> None:
        """Keep what the sums of a tile's products begin with beside the weights' part."""
        vector = self.vector
        found, total = self.local(vector, vector), self.local(1, vector)
        whole = lanes(i64(0), vector)
        # The last one's pairs reach as far.
        behind = lanes(self.sums(i64(columns), tile, i64(0)), vector)
        T.buffer_store(self.frame.scratch, tirx.Broadcast(_ZERO, vector), [behind])
        with T.serial(i64(0), i64(-(-columns // vector))) as group:
            with T.serial(i64(0), i64(vector)) as number:
                column = tirx.min(group * i64(vector) + number, i64(columns - 1))
                T.buffer_store(total, tirx.Broadcast(_ZERO, vector), [i64(0), whole])
                self._add_pairs(tile, column, total)
                T.buffer_store(found, total[i64(0), whole], [number, whole])
            held = [found[i64(number), whole] for number in range(vector)]
            at = self._excess.at(*tile, group * i64(vector))
            T.buffer_store(self.frame.scratch, totals(vector, "float32", held), [lanes(at, vector)])

    def _add_pairs(self, tile: Sequence[Any], column: Any, total: Any) -> None:
        """Take from ``total`` what the pairs of a sum of inputs add too much."""
        vector = self.vector
        whole = lanes(i64(0), vector)
        pairing = self.form.pairing
        assert pairing is not None
        for a, b, count, sign in pairing.pairs:
            for start in range(0, count, vector):
                one, other = (
                    self.frame.scratch[lanes(self.sums(column, tile, i64(first + start)), vector)]
                    for first in (a, b)
                )
                before = total[i64(0), whole]
                if count - start < vector:
                    # Lanes past the last pair are of other channels, or zeros behind all. A product
                    # with 0 leaves them out: a mask would be an instruction of many cycles.
                    inside = whole < tirx.Broadcast(i64(count - start), vector)
                    signs = [
                        tirx.Broadcast(tirx.const(factor, "float32"), vector)
                        for factor in (-sign, 0)
                    ]
                    value = before + one * tirx.Select(inside, *signs) * other
                else:
                    value = before - one * other if sign > 0 else before + one * other
                T.buffer_store(total, value, [i64(0), whole])

    def begins(self, tile: Sequence[Any], column: Any) -> Any:
        """What the sums of a tile's product begin with beside the weights' part."""
        return self._excess.load(*tile, column)

    def back(self, tile: Sequence[Any], lane: Any) -> Any:
        """What scales the results of a tile back."""
        form = self.form
        assert form.paired is not None
        return self._inverses.load(*tile) * self.frame.weights[i64(form.paired.offset) + lane]

    def next_weights_of_pairs(
        self, weights: Region, place: tuple[Any, ...], lanes: int, total: int, number: Any
    ) -> Callable[[Any], None]:
        """Bring a share of the next point's weights into the cache, line by line."""
        size = weights.shape[-2] * lanes
        line = LINE_BYTES // np.dtype(self.dtype).itemsize
        assert self.form.pairing is not None
        steps = self.form.pairing.steps * (lanes // self.vector)
        each = max(1, round(size / line / (total * steps)))
        share = each * steps * line
        room = self.frame.packed_size - total * share
        near = size * np.dtype(self.dtype).itemsize <= NEAR
        after = weights.at(*place, i64(0), i64(0)) + i64(size)
        begin = tirx.max(tirx.min(after, i64(room)), i64(0)) + number * i64(share)

        def step(number: Any) -> None:
            for k in range(each):
                at = begin + number * i64(each * line) + i64(k * line)
                self.prefetch(self.frame.weights[at], near=near)

        return step

    def pair_tile(
        self,
        operands: Operands,
        width: int,
        lanes: int,
        register: Any,
        ahead: Callable[[Any], None],
        claim: Callable[[Any], None],
    ) -> None:
        """A register tile by pairs of channels, for one register of the lanes."""
        pairing, vector, first = self.form.pairing, self.vector, register * i64(self.vector)
        assert pairing is not None
        sums = self.local(width, vector)
        (d, h, w), (td, th, tw) = operands.source, operands.tile

        def ask(step: Any) -> None:
            number = register * i64(pairing.steps) + step
            claim(number)
            ahead(number)

        with T.unroll(i64(0), i64(width)) as i, T.vectorized(i64(0), i64(vector)) as v:
            start = operands.weights.load(*operands.place, i64(0), first + v)
            value = start + self.begins((d, h, w + i), operands.column)
            T.buffer_store(sums, value, [i, v])
        pairing.emit(
            width, vector, sums,
            lambda i, c: self.frame.scratch[self.sums(operands.column, (d, h, w + i), c)],
            lambda slot, lane: operands.weights.load(*operands.place, i64(1) + slot, first + lane),
            ask,
        )  # fmt: skip
        with T.unroll(i64(0), i64(width)) as i, T.vectorized(i64(0), i64(vector)) as v:
            place = self.product((td, th, tw + i), operands.point, lanes, first + v)
            T.buffer_store(self.frame.scratch, sums[i, v], [place])


def _some(first: Any, size: int) -> Any:
    """The indices of ``size`` elements side by side."""
    return first if size == 1 else lanes(first, size)
