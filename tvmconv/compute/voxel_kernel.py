"""The statements of the voxel form's kernel: pack a row, multiply it, finish a row of positions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import LINE_BYTES, Region, divide, first_position, i64, positions
from tvmconv.compute.shuffle import lanes, part_of
from tvmconv.compute.voxel_rows import Part, Tile, VoxelRows
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.voxels import Pass

__all__ = ["VoxelKernel"]


@dataclass(frozen=True)
class _Next:
    """What is packed among the products of a part, of which row and ``where`` that is so.

    And what is asked for.
    """

    part: Part | None
    place: tuple[Any, Any, Any]
    where: Any
    asked: tuple[Any, ...]


@dataclass(frozen=True)
class VoxelKernel(VoxelRows):
    """Emits the statements of a voxel kernel."""

    @property
    def _line(self) -> Region:
        return Region(self.frame.scratch, self._packed.size, self.form.line_shape)

    @property
    def _row(self) -> Region:
        offset = self._packed.size + self._line.size
        return Region(self.frame.scratch, offset, self.form.row_shape)

    def tile(self, n: Any, chunk: Any, block: Any) -> None:
        """Planes and rows of one task tile: input rows in the order in which they lie."""
        depth, height, _ = self.form.work.plan.axes
        slots, halo = self.form.line_shape[0], self.form.halo
        bounds = []
        for axis, number, most in (
            (depth, chunk, self.form.tiling.planes), (height, block, self.form.tiling.rows),
        ):  # fmt: skip
            first = number * i64(most) + i64(first_position(axis))
            end = tirx.min(first + i64(most), i64(first_position(axis) + positions(axis)))
            bounds.append((first, end))
        planes, rows = bounds
        tile = Tile(n, planes, rows, rows[0] - i64(halo))
        self._clear()
        with T.serial(i64(0), planes[1] - planes[0] + i64(slots - 1)) as step:
            d = planes[0] - i64(slots - 1) + step
            if self.form.together > 1:
                self._together(tile, d)
            else:
                self._one_by_one(tile, d)

    def _one_by_one(self, tile: Tile, d: Any) -> None:
        """The input rows of a plane, and the rows of sums that end with them."""
        depth, height, _ = self.form.work.plan.axes
        with T.serial(i64(0), tile.rows[1] - tile.lowest) as r:
            h = tile.lowest + r
            self._begin(tile, d, r)
            there = tirx.all(d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size))
            with T.If(there), T.Then():
                self._multiply(tile, d, h)
            with T.If(tirx.all(d >= tile.planes[0], h >= tile.rows[0])), T.Then():
                line = self._slot(d), r
                self._finish(tile.n, (d, h), line, i64(0), self.form.vectors)

    def _together(self, tile: Tile, d: Any) -> None:
        """Those of a plane where some rows are packed together."""
        depth, height, _ = self.form.work.plan.axes
        together = self.form.together
        count = tile.rows[1] - tile.lowest
        with T.serial(i64(0), tirx.floordiv(count + i64(together - 1), i64(together))) as group:
            first = group * i64(together)
            some = tirx.min(i64(together), count - first)
            with T.serial(i64(0), some) as number:
                self._begin(tile, d, first + number)
            h = tirx.max(tile.lowest + first, i64(0))
            end = tirx.min(tile.lowest + first + some, i64(height.size))
            with T.If(tirx.all(d >= i64(0), d < i64(depth.size), end > h)), T.Then():
                for channels in self._channels():
                    self._pack_rows((tile.n, d, h), end - h, channels)
                    with T.serial(i64(0), end - h) as row:
                        place = (tile.n, d, h + row)
                        part = Part(i64(0), self.form.groups, channels, row)
                        asked = self._rows_ahead(tile, (tile.n, d, h), channels, end, row)
                        self._passes(tile, place, part, _Next(None, place, False, asked))
            with T.serial(i64(0), some) as number:
                r = first + number
                h = tile.lowest + r
                with T.If(tirx.all(d >= tile.planes[0], h >= tile.rows[0])), T.Then():
                    self._finish(tile.n, (d, h), (self._slot(d), r), i64(0), self.form.vectors)

    def _slot(self, q: Any) -> Any:
        slots = self.form.line_shape[0]
        return tirx.floormod(q, i64(slots))

    def _clear(self) -> None:
        """The borders of packed rows; and the sums before those of the tile."""
        first, (before, after) = self.form.origin, self.form.border
        last = first + min(after, self.form.work.plan.axes[2].size)
        if not self.form.by_groups:
            self._zero(self._packed.shape[0], first - before, before)
            self._zero(self._packed.shape[0], last, first + after - last)
        if self.form.halo:
            with T.grid(i64(self.form.line_shape[0]), i64(self.form.halo)) as (slot, r):
                self._start(slot, r)

    def _begin(self, tile: Tile, d: Any, r: Any) -> None:
        """The bias, where the first input of a row of sums is not the one of their last taps."""
        depth, height, width = self.form.work.plan.axes
        slots, halo, h = self.form.line_shape[0], self.form.halo, tile.lowest + r
        if any(axis.kernel < axis.stride for axis in (depth, height, width)):
            # Some sums have no input at all.
            self._start(d + i64(slots - 1), r + i64(halo))
            return
        whole = tirx.all(
            d >= i64(0), d < i64(depth.size - slots + 1), h >= i64(0), h < i64(height.size - halo)
        )
        with T.If(tirx.Not(whole)), T.Then():
            self._start(d + i64(slots - 1), r + i64(halo))

    def _start(self, q: Any, r: Any) -> None:
        """A row of sums that hold the bias."""
        size, filters = self.form.tiling.vector, self.form.work.plan.filters
        with T.serial(i64(0), i64(len(self.form.all_sums) // filters)) as phase:
            for f in range(filters):
                with T.serial(i64(0), i64(self.form.vectors)) as m:
                    number = phase * i64(filters) + i64(f)
                    place = self._line.at(self._slot(q), r, number, m * i64(size))
                    value = tirx.Broadcast(self.frame.bias[i64(f)], size)
                    T.buffer_store(self.frame.scratch, value, [lanes(place, size)])

    def _multiply(self, tile: Tile, d: Any, h: Any) -> None:
        """All products of an input row."""
        place = (tile.n, d, h)
        if self.form.by_groups:
            for kind in self.form.groups:
                self._overlapping(tile, place, kind)
            return
        if self.form.by_rows:
            self._rolling(tile, place)
            return
        for channels in self._channels():
            part = Part(i64(0), self.form.groups, channels)
            self._pack(place, part)
            asked = self._row_ahead(tile, place, channels)
            self._passes(tile, place, part, _Next(None, place, False, asked))

    def _rolling(self, tile: Tile, place: tuple[Any, Any, Any]) -> None:
        """Those of a row's channels, some at a time, which pack the next ones or the next row."""
        (n, d, h), height = place, self.form.work.plan.axes[1]
        blocks, count = self.form.blocks, self.form.packed_shape[0]

        def part(number: Any) -> Part:
            return Part(i64(0), self.form.groups, (number * i64(count), count))

        final = self.form.passes[-1]
        *_, runs = self._taps(final, tile, place)
        *_, ran = self._taps(final, tile, (n, d, h - i64(1)))
        packed = tirx.all(h > tirx.max(tile.lowest, i64(0)), ran)
        with T.If(tirx.Not(packed)), T.Then():
            self._pack(place, part(i64(0)))
        below = h + i64(1) < tirx.min(tile.rows[1], i64(height.size))
        with T.serial(i64(0), i64(blocks)) as number:
            inside = number + i64(1) < i64(blocks)
            row = tirx.Select(inside, h, h + i64(1))
            following = part(tirx.Select(inside, number + i64(1), i64(0)))
            where = tirx.all(tirx.any(inside, below), runs)
            asked = self._row_ahead(tile, place, part(number).channels)
            after = _Next(following, (n, d, row), where, asked)
            self._passes(tile, place, part(number), after)
            with T.If(tirx.all(inside, tirx.Not(runs))), T.Then():
                self._pack(place, following)

    def _overlapping(
        self, tile: Tile, place: tuple[Any, Any, Any], kind: tuple[int, int, int]
    ) -> None:
        """The products of a row's groups, each of which packs the next one."""
        _, groups, vectors = kind
        blocks, count = self.form.blocks, self.form.packed_shape[0]
        left, size = self._left(kind), vectors * self.form.tiling.vector

        def part(number: Any) -> Part:
            group, block = divide(number, blocks)
            return self._part(kind, group, (block * i64(count), count))

        first = part(i64(0))
        self._pack_group(place, first, left, groups == 1)
        self._beside(place, first)
        *_, runs = self._taps(self.form.passes[-1], tile, place)
        with T.serial(i64(0), i64(groups * blocks)) as number:
            following = part(number + i64(1))
            there = number + i64(1) < i64(groups * blocks)
            last = following.voxel > i64(self.form.work.plan.axes[2].size - size)
            where = tirx.all(there, runs) if left >= size else tirx.all(there, tirx.Not(last), runs)
            later = part(number + i64(2))
            asked = self._ahead(tile, place, later.voxel, later.channels[0])
            self._passes(tile, place, part(number), _Next(following, place, where, asked))
            with T.If(there), T.Then():
                with T.If(where):
                    with T.Then():
                        self._beside(place, following, before=blocks > 1)
                    with T.Else():
                        self._pack_group(place, following, left, last)
                        self._beside(place, following)

    def _passes(self, tile: Tile, place: tuple[Any, Any, Any], part: Part, after: _Next) -> None:
        for number, one in enumerate(self.form.passes):
            last = number == len(self.form.passes) - 1
            asked = () if number else after.asked
            share = _Next(after.part if last else None, after.place, after.where, asked)
            self._pass(one, tile, place, part, share)

    def _taps(self, one: Pass, tile: Tile, place: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        """Depth taps of a pass whose outputs this task makes: the first, how many, any at all."""
        depth, height, _ = self.form.work.plan.axes
        _, d, h = place
        dilation = i64(depth.dilation)
        # Positions at which a phase of the pass has an output.
        phases = [depth.phases[which[0][0]] for _, which in one.sums]
        begin = tirx.max(tile.planes[0], i64(min(phase.first for phase in phases)))
        behind = max(phase.first + phase.count for phase in phases)
        end = tirx.min(tile.planes[1], i64(behind))
        # Rounded up, as negative numbers rounded down: see `codegen.lowering` for the signs.
        a0 = tirx.max(-tirx.floordiv(d - begin, dilation), i64(one.run.first))
        a1 = tirx.min(-tirx.floordiv(d - end, dilation), i64(one.run.first + one.run.count))
        taps = [b for b, _ in one.sums]
        near, far = (h + i64(b * height.dilation) for b in (min(taps), max(taps)))
        there = tirx.all(near < tile.rows[1], far >= tile.rows[0], a1 > a0)
        return a0, a1 - a0, there

    def _pass(
        self, one: Pass, tile: Tile, place: tuple[Any, Any, Any], part: Part,
        after: _Next,
    ) -> None:  # fmt: skip
        """Those of a pass, for each depth tap whose outputs this task makes."""
        a0, count, there = self._taps(one, tile, place)
        with T.If(there), T.Then():
            with T.serial(i64(0), count) as step:
                a = a0 + step
                final = tirx.all(after.where, step + i64(1) >= count)
                for kind in part.groups:
                    start, groups, vectors = kind
                    with T.serial(i64(0), i64(groups)) as group:
                        size = self.form.tiling.vector
                        voxel = i64(start * size) + group * i64(vectors * size)
                        last = tirx.all(final, group + i64(1) >= i64(groups))
                        following = after.part if kind == part.groups[-1] else None
                        self._group(
                            one,
                            tile,
                            place,
                            a,
                            part,
                            voxel,
                            vectors,
                            _Next(following, after.place, last, after.asked),
                        )

    def _group(
        self, one: Pass, tile: Tile, place: tuple[Any, Any, Any],
        a: Any, part: Part, packed: Any, vectors: int, after: _Next,
    ) -> None:  # fmt: skip
        """A group of registers: sums from the ring, products of the channels, sums to the ring.

        ``packed`` is its first voxel among those that are packed.
        """
        _, d, h = place
        voxel = part.voxel + packed
        size, plan = self.form.tiling.vector, self.form.work.plan
        depth, height, _ = plan.axes
        slot = self._slot(d + a * i64(depth.dilation))
        cells = [
            (
                i64(number * vectors + m),
                lanes(
                    self._line.at(
                        slot,
                        h - tile.lowest + i64(b * height.dilation),
                        i64(self.form.all_sums.index(which)),
                        voxel + i64(m * size),
                    ),
                    size,
                ),
            )
            for number, (b, which) in enumerate(one.sums)
            for m in range(vectors)
        ]
        sums = T.sblock_alloc_buffer((i64(len(cells)),), self._kind, scope="local")
        inputs = T.sblock_alloc_buffer((i64(vectors),), self._kind, scope="local")
        first, count = part.channels
        for number, (b, which) in enumerate(one.sums):
            # The first of a sum's inputs to come is that of its last taps.
            last_a, last_b = (
                axis.phases[residue].taps - 1
                for axis, residue in zip((depth, height), which[0], strict=False)
            )
            bias = tirx.Broadcast(self.frame.bias[i64(which[1])], size)
            begins = tirx.all(first == i64(0), a == i64(last_a))
            for m in range(vectors):
                cell, index = cells[number * vectors + m]
                held = self.frame.scratch[index]
                value = tirx.Select(begins, bias, held) if b == last_b else held
                T.buffer_store(sums, value, [cell])
        if after.asked:
            claims = tirx.all(a == i64(0), first == i64(0), h >= tile.rows[0])
            with T.If(claims), T.Then():
                self._claim(place, voxel, vectors)
        run = len(one.products)
        begin = i64(one.offset) + ((a - i64(one.run.first)) * i64(plan.in_channels) + first) * i64(
            run
        )

        def multiply(c: Any) -> None:
            if after.asked:
                share = a - i64(one.run.first), one.run.count
                self._ask(after.asked, count, c, voxel, vectors, share)
            before = None
            for number, (t, cell) in enumerate(one.products):
                reach = self.form.reach(t, one.sums[cell][1][0][2])
                if reach != before:
                    before = reach
                    for m in range(vectors):
                        shift = self.form.origin + reach + m * size
                        at = self._packed.at(self._place(part, c), packed + i64(shift))
                        T.buffer_store(inputs, self.frame.scratch[lanes(at, size)], [i64(m)])
                weight = tirx.Broadcast(
                    self.frame.weights[begin + c * i64(run) + i64(number)], size
                )
                for m in range(vectors):
                    target = i64(cell * vectors + m)
                    T.buffer_store(sums, sums[target] + inputs[i64(m)] * weight, [target])

        def plain() -> None:
            with T.serial(i64(0), i64(count)) as c:
                multiply(c)

        if after.part:
            lane = 1 if plan.channels_first else part_of(self._dtype)
            with T.If(after.where):
                with T.Then(), T.serial(i64(0), i64(count // lane)) as number:
                    for k in range(lane):
                        multiply(number * i64(lane) + i64(k))
                    # Now that these channels have been multiplied, others take their place.
                    replace = self._replace_row if plan.channels_first else self._replace
                    replace(after.place, after.part, number * i64(lane))
                with T.Else():
                    plain()
        else:
            plain()
        for cell, index in cells:
            T.buffer_store(self.frame.scratch, sums[cell], [index])

    def _place(self, part: Part, c: Any) -> Any:
        """The packed channel of a part."""
        return c if part.row is None else part.row * i64(self.form.packed_shape[0]) + c

    def _claim(self, place: tuple[Any, Any, Any], voxel: Any, vectors: int) -> None:
        """Bring the places of the outputs of a group into the cache."""
        plan = self.form.work.plan
        n, d, h = place
        depth, height, width = plan.axes
        line = LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize
        count = -(-vectors * self.form.tiling.vector * self.form.factor // line)
        for x, y in itertools.product(range(depth.stride), range(height.stride)):
            od = d * i64(depth.stride) + i64(x - depth.lo)
            oh = h * i64(height.stride) + i64(y - height.lo)
            inside = tirx.all(od >= i64(0), od < i64(depth.out), oh >= i64(0), oh < i64(height.out))
            with T.If(inside), T.Then():
                if plan.channels_first:
                    with T.grid(i64(plan.filters), i64(count)) as (f, number):
                        w = voxel * i64(width.stride) + number * i64(line)
                        self.frame.claim(n, (od, oh, w), f)
                else:
                    with T.serial(i64(0), i64(count)) as number:
                        self.frame.claim(n, (od, oh, voxel * i64(width.stride)), number * i64(line))
