"""Products of the last few filters of the Toom-Cook form, whose lanes are input channels."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.frame import i64
from tvmconv.compute.points import Combination
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.shuffle import totals
from tvmconv.compute.tiling import cut
from tvmconv.compute.toom_cook_pairs import Operands, Pairs

__all__ = ["LaneDots"]


class LaneDots(Pairs):
    """Multiplies register tiles of a few filters, and adds their lanes up."""

    def dots_beside(self, operands: Operands, one: Combination, number: int, width: int) -> None:
        """The dots of a register tile of group ``number``, for the filters after its last block."""
        form = self.form
        if not form.masked or not form.tiling.dots:
            return
        group = form.groups[number]
        dots = replace(operands, weights=one.weights(self.frame.weights, number + 1))
        several = group.blocks > 1
        last = operands.place[3] == i64(group.blocks - 1)
        with T.If(last) if several else nullcontext(), T.Then() if several else nullcontext():
            self.dots(dots, width, form.tiling.dots, group.lanes)

    def dots(self, operands: Operands, width: int, filters: int, lane: int = 0) -> None:
        """A register tile of the last filters: the lanes are input channels, added up at the end.

        Their products go to ``lane`` and those after it.
        """
        first = 0
        for parts, tiles in cut(width, max(1, self.vector // _power(filters))):
            # In a loop where other code stands beside it.
            with T.serial(i64(0), i64(parts if self.form.masked else 1)) as part:
                for number in range(1 if self.form.masked else parts):
                    start = i64(first + number * tiles) + part * i64(tiles)
                    self._dots_of(operands, start, tiles, filters, lane)
            first += parts * tiles

    def _dots_of(self, operands: Operands, first: Any, tiles: int, filters: int, lane: int) -> None:
        """Some tiles of a register tile, no more than a register has lanes for."""
        vector, place, size = self.vector, operands.place, _power(filters)
        (d, h, w), (td, th, tw) = operands.source, operands.tile
        sums = self.local(tiles * filters, vector)

        def each(parts: int, lanes: int, value: Callable[[Any, Any, Any, Any], Any]) -> None:
            with (
                T.serial(i64(0), i64(parts)) as part,
                T.unroll(i64(0), i64(tiles)) as i,
                T.unroll(i64(0), i64(filters)) as f,
                T.vectorized(i64(0), i64(lanes)) as v,
            ):
                cell = [i * i64(filters) + f, v]
                T.buffer_store(sums, value(i, f, part * i64(lanes) + v, cell), cell)

        each(1, vector, lambda i, f, c, cell: tirx.const(0, self.dtype))
        for start, parts, lanes in finish.chunks(self.form.work.plan.in_channels, vector):

            def add(i: Any, f: Any, c: Any, cell: list[Any], start: int = start) -> Any:
                c = i64(start) + c
                index = self.sums(operands.column, (d, h, w + first + i), c)
                weight = operands.weights.load(*place[:3], f, *place[4:], c, i64(0))
                return sums[cell[0], cell[1]] + self.frame.scratch[index] * weight

            each(parts, lanes, add)
        # A power of two of registers: those too many repeat the last.
        numbers = [
            min(i, tiles - 1) * filters + min(f, filters - 1)
            for i in range(_power(tiles))
            for f in range(size)
        ]
        held = [sums[i64(number), lanes_at(i64(0), vector)] for number in numbers]
        found = totals(vector, self.dtype, held)
        for i in range(tiles):
            # Where a whole register is read, all of it: filters over again.
            count = vector if self.form.masked else filters
            sources = [found] * max(1, count // len(numbers))
            some = [tirx.IntImm("int32", i * size + min(f, size - 1)) for f in range(count)]
            index = self.product((td, th, tw + first + i64(i)), operands.point, filters, i64(lane))
            at = index if count == 1 else lanes_at(index, count)
            T.buffer_store(self.frame.scratch, tirx.Shuffle(sources, some), [at])


def _power(count: int) -> int:
    """The next power of two."""
    return 1 << (count - 1).bit_length()
