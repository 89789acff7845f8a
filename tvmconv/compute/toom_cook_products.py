"""The products of the Toom-Cook form: one matrix product a point, in register tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.frame import Region, divide, i64
from tvmconv.compute.lanes import Group
from tvmconv.compute.points import Combination, pick
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.tiling import cut
from tvmconv.compute.toom_cook_block import Phase
from tvmconv.compute.toom_cook_lane_dots import LaneDots
from tvmconv.compute.toom_cook_leaving import Leaving
from tvmconv.compute.toom_cook_pairs import NEAR, Operands
from tvmconv.compute.transforms import PhaseClass
from tvmconv.policies import numpy_dtype

__all__ = ["Products"]

#: Bytes of a line of the cache.
_LINE = 64


class Products(LaneDots):
    """Multiplies the sums of inputs of a block with the weights."""

    def multiply(self, phase: Phase, number: int, block: Any) -> None:
        """``[tiles, in channels] x [in channels, lanes]`` for every point."""
        form, group = self.form, self.form.groups[number]
        first, one, members = phase.first, phase.one, phase.members
        weights = one.weights(self.frame.weights, number)
        sizes = [len(axis.scheme.points) for axis in one.classes]
        of_row = sum(parts for parts, _ in self._parts())
        leaving = self.leaving(one, members, number, block, of_row)
        fetch = self.fetch(one, members, number, block, of_row)
        with T.grid(*map(i64, sizes)) as point:
            column, shifts = self.columns(one, members, point)
            shared = [
                p if len(axis.scheme.weights) > 1 else i64(0)
                for p, axis in zip(point, one.classes, strict=True)
            ]
            flat = Region(None, 0, tuple(sizes)).at(*point)
            depth, height = (
                self._needing(number, first, one.classes[number], members[number], point[number])
                for number in (0, 1)
            )

            needed = self._row_needing(one.classes[2], members[2], point[2])
            rows, steps = form.tiling.block[0] * form.tiling.block[1], self._steps(group.lanes)
            asks = leaving is not None and steps > 1 and not group.dots

            def register_tile(
                at: tuple[Any, Any], part: Any, width: int, done: int, before: int, ask: Any
            ) -> None:
                """Register tile ``part`` of those of one width of a row of tiles."""
                d, h = at
                before_end = done + self._count_of(width) * width < form.axes[2].tiles
                number_of_row = d * i64(form.tiling.block[1]) + h
                w = i64(done) + part * i64(width)
                tile = [t + s for t, s in zip((d, h, w), shifts, strict=True)]
                place = (*members, block, *shared)
                operands = Operands(weights, place, column, tile, (d, h, w), flat)
                begun = i64(before) + part
                number_of_tile = number_of_row * i64(of_row) + begun

                def multiply(width: int) -> None:
                    if group.dots:
                        self.dots(operands, width, group.blocks)
                        return
                    next_weights = self._next_weights
                    if form.tiling.paired:
                        next_weights = self.next_weights_of_pairs
                    ahead = next_weights(
                        weights, operands.place, group.lanes, rows * of_row, number_of_tile
                    )
                    channel = i64(group.first) + block * i64(group.lanes)
                    if ask is None:
                        claim = self._claims(phase, operands, width, channel, group)
                    else:
                        often = leaving is not None and leaving.often
                        claim = partial(ask, i64(0) if often else begun * i64(steps))
                    self._tile(operands, width, group.lanes, ahead, claim)
                    if group is form.passes[-1]:
                        self.dots_beside(operands, one, number, width)

                if needed is None or (form.axes[2].blocks == 1 and before_end):
                    multiply(width)
                else:
                    with T.If(first[2] + w + i64(width) > needed):
                        with T.Then():
                            if width > 1:
                                multiply(width - 1)
                            if not form.tiling.compact or self.spared(one, 2)[1]:
                                self._zero((d, h, w + i64(width - 1)), flat, group)
                        with T.Else():
                            multiply(width)
                if fetch is not None:
                    fetch.after(flat * i64(rows * of_row) + number_of_tile)

            def row(d: Any, h: Any) -> None:
                """A row of tiles."""
                done = before = 0
                ask = None
                if leaving is not None and asks:
                    turn = flat * i64(rows) + d * i64(form.tiling.block[1]) + h
                    ask = leaving.asking(turn, of_row * steps)
                for parts, width in self._parts():
                    with T.serial(i64(0), self._present(first, parts, width)) as part:
                        register_tile((d, h), part, width, done, before, ask)
                    done += parts * width
                    before += parts

            def turn(leaving: Leaving, d: Any, h: Any, number: Any) -> None:
                """Register tile ``number`` of a row, if it exists, and the pieces of its turn."""
                size = form.tiling.block
                this = ((flat * i64(size[0]) + d) * i64(size[1]) + h) * i64(of_row) + number
                ask = leaving.asking(this, steps) if asks else None
                done = before = 0
                for parts, width in self._parts():
                    end = i64(before) + self._present(first, parts, width)
                    here = [d < depth, h < height, number >= i64(before), number < end]
                    with T.If(tirx.all(*here)), T.Then():
                        register_tile((d, h), number - i64(before), width, done, before, ask)
                    done += parts * width
                    before += parts
                leaving.write(this)

            if any(axis.is_short for axis in form.axes[:2]):
                every = not form.tiling.compact or bool(self.spared(one, 1)[1])
                heights = self.count(1, first) if every else height
                self._zeros(first, depth, height, heights, flat, group)
            if leaving is None:
                with T.grid(depth, height) as (d, h):
                    row(d, h)
                return
            # Pieces leave with rows of tiles that do not exist, too.
            size = form.tiling.block
            if leaving.often:
                with T.grid(i64(size[0]), i64(size[1]), i64(of_row)) as (d, h, number_of_tile):
                    turn(leaving, d, h, number_of_tile)
                return
            with T.grid(i64(size[0]), i64(size[1])) as (d, h):
                with T.If(tirx.all(d < depth, h < height)), T.Then():
                    row(d, h)
                leaving.write((flat * i64(size[0]) + d) * i64(size[1]) + h)

    def _count_of(self, width: int) -> int:
        """Register tiles of one width in a row."""
        return sum(parts for parts, some in self._parts() if some == width)

    def _next_weights(
        self, weights: Region, place: tuple[Any, ...], lanes: int, total: int, number: Any
    ) -> Callable[[Any], None]:
        """Bring a share of the next point's weights into the cache, step by step of the tiles.

        They come from far, and each is used too shortly to wait for it: without this a quarter of
        the time is lost.
        """
        size = self.form.work.plan.in_channels
        share = -(-lanes // total)
        room = self.frame.packed_size - total * size * share
        near = size * lanes * np.dtype(self.dtype).itemsize <= NEAR
        after = weights.at(*place, i64(0), i64(0)) + i64(size * lanes)
        begin = tirx.max(tirx.min(after, i64(room)), i64(0)) + number * i64(size * share)

        def step(c: Any) -> None:
            self.prefetch(self.frame.weights[begin + c * i64(share)], near=near)

        return step

    def _claims(
        self, phase: Phase, operands: Operands, width: int, channel: Any, group: Group
    ) -> Callable[[Any], None]:
        """Bring the places of the outputs into the cache, step by step of the tiles.

        Stores in a row would wait for them, and so would the sums if the core asked for many at
        once. The points share the outputs of a tile evenly.
        """
        work, (d, h, w) = self.form.work, operands.tile
        if finish.needs_line(work):
            return lambda step: None
        counts, one = phase.shape, phase.one
        made = math.prod(counts)
        rest, c = divide(tirx.floordiv(operands.point * i64(made), i64(one.points)), counts[2])
        output = (*divide(rest, counts[1]), c)
        line = _LINE // numpy_dtype(work.output_dtype).itemsize
        steps = self._steps(group.lanes)
        each, times = 1 << max(0, (steps // width).bit_length() - 1), -(-width // steps)

        def step(number: Any) -> None:
            for i in range(times):
                tile = tirx.floordiv(number, i64(each)) * i64(times) + i64(i)
                tile = w + tirx.min(tile, i64(width - 1))
                place = self.nearest(phase, (d, h, tile), output)
                for start in range(0, group.valid, line):
                    where = (phase.n, *place, channel + i64(start))
                    self.prefetch(self.frame.y[where], write=True)

        return step

    def _parts(self) -> list[tuple[int, int]]:
        """Register tiles along a row of the block: how many, and the tiles of each."""
        axis = self.form.axes[2]
        width = self.form.tiling.width
        return cut(axis.tiles, width) if axis.blocks == 1 else [(axis.block // width, width)]

    def _needing(
        self, number: int, first: tuple[Any, ...], group: PhaseClass, member: Any, point: Any
    ) -> Any:
        """Tiles of the block along an axis that need a product."""
        axis = self.form.axes[number]
        needing = list(itertools.chain(*axis.needing(group)))
        if min(needing) == axis.tiles:
            return self.count(number, first)
        tiles = pick(needing, member * i64(len(group.scheme.points)) + point)
        return tirx.min(i64(axis.block), tiles - first[number])

    def _zeros(
        self, first: tuple[Any, ...], depth: Any, height: Any, heights: Any, point: Any,
        group: Group,
    ) -> None:  # fmt: skip
        """The products of tiles that do not need a point, whose sums of inputs would be 0."""
        with T.grid(self.count(0, first), heights) as (d, h):
            with T.If(tirx.any(d >= depth, h >= height)), T.Then():
                with T.serial(i64(0), self.count(2, first)) as w:
                    self._zero((d, h, w), point, group)

    def _zero(self, tile: Sequence[Any], point: Any, group: Group) -> None:
        """The same of one tile."""
        form = self.form
        lanes = group.blocks if group.dots else group.lanes
        if form.masked:
            # All lanes that are read, those of the dots beside the last group, too.
            lanes += form.tiling.dots if group is form.passes[-1] else 0
            lanes = -(-lanes // self.vector) * self.vector
        zero = tirx.const(0, self.dtype)
        for start, count, size in finish.chunks(lanes, self.vector):
            with T.serial(i64(0), i64(count)) as o:
                at = self.product(tile, point, lanes, i64(start) + o * i64(size))
                if size == 1:
                    T.buffer_store(self.frame.scratch, zero, [at])
                else:
                    value = tirx.Broadcast(zero, size)
                    T.buffer_store(self.frame.scratch, value, [lanes_at(at, size)])

    def _row_needing(self, group: PhaseClass, member: Any, point: Any) -> Any:
        """Tiles of a row that need a product; None: register tiles have all of them."""
        axis = self.form.axes[2]
        needing = list(itertools.chain(*axis.needing(group)))
        if not self.form.narrows or min(needing) == axis.tiles:
            return None
        return pick(needing, member * i64(len(group.scheme.points)) + point)

    def _present(self, first: tuple[Any, ...], parts: int, width: int) -> Any:
        axis = self.form.axes[2]
        if axis.blocks == 1 or axis.tiles % axis.block == 0:
            return i64(parts)
        left = i64(axis.tiles + width - 1) - first[2]
        return tirx.min(i64(parts), tirx.floordiv(left, i64(width)))

    def columns(
        self, one: Combination, members: list[Any], point: Sequence[Any]
    ) -> tuple[Any, list[Any]]:
        """The column that a point reads, and how many tiles further on."""
        flat, shifts = i64(0), []
        for axis, group, member, p in zip(self.form.axes, one.classes, members, point, strict=True):
            schemes = group.scheme.points
            if not axis.shared:
                flat = flat * i64(len(schemes)) + p
                shifts.append(i64(0))
                continue
            found = [axis.column(start, column) for start in group.starts for column in schemes]
            index = member * i64(len(schemes)) + p if len(group.starts) > 1 else p
            flat = flat * i64(len(axis.columns)) + pick([column for column, _ in found], index)
            shifts.append(pick([shift for _, shift in found], index))
        return flat, shifts

    @property
    def _pace(self) -> int:
        """Channels between two claims.

        With short vectors all of them: a loop has no slots and registers left for the addresses.
        Pairs: those of a step.
        """
        if self.form.pairing is not None:
            return 6
        channels = self.form.work.plan.in_channels
        return math.gcd(channels, 4) if self.vector >= 16 else channels

    def _steps(self, lanes: int) -> int:
        """Claims of a register tile: pairs take one register of its lanes after the other."""
        steps = self.form.work.plan.in_channels // self._pace
        return steps * (lanes // self.vector) if self.form.tiling.paired else steps

    def _tile(
        self,
        operands: Operands,
        width: int,
        lanes: int,
        ahead: Callable[[Any], None],
        claim: Callable[[Any], None],
    ) -> None:
        """A register tile: ``width`` tiles of a row, the lanes of a block."""
        if self.form.tiling.paired:
            with T.serial(i64(0), i64(lanes // self.vector)) as o:
                self.pair_tile(operands, width, lanes, o, ahead, claim)
            return
        sums = self.local(width, lanes)
        d, h, w = operands.source

        def each(body: Callable[[Any, Any], None]) -> None:
            # Whole registers, then a part of one.
            with T.unroll(i64(0), i64(width)) as i:
                for start, vectors, size in finish.chunks(lanes, self.vector):
                    with (
                        T.unroll(i64(0), i64(vectors)) as o,
                        T.vectorized(i64(0), i64(size)) as v,
                    ):
                        body(i, i64(start) + o * i64(size) + v)

        def add(c: Any, i: Any, lane: Any) -> None:
            value = self.frame.scratch[self.sums(operands.column, (d, h, w + i), c)]
            product = value * operands.weights.load(*operands.place, c, lane)
            T.buffer_store(sums, sums[i, lane] + product, [i, lane])

        def store(i: Any, lane: Any) -> None:
            td, th, tw = operands.tile
            place = self.product((td, th, tw + i), operands.point, lanes, lane)
            T.buffer_store(self.frame.scratch, sums[i, lane], [place])

        each(lambda i, lane: T.buffer_store(sums, tirx.const(0, self.dtype), [i, lane]))
        channels = self.form.work.plan.in_channels
        spread = self._pace < channels
        pace = self._pace if spread else 1
        if not spread:
            claim(i64(0))
        with T.serial(i64(0), i64(channels // pace)) as number:
            if spread:
                claim(number)
            for begin in range(pace):
                c = number * i64(pace) + i64(begin)
                ahead(c)
                each(partial(add, c))
        each(store)
