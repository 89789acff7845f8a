"""The kernel of the Toom-Cook form for few filters: copy, sum, multiply, transform back, write."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Region, i64
from tvmconv.compute.points import Combination, pick
from tvmconv.compute.schemes import KINDS, Scheme, signed_sum
from tvmconv.compute.shuffle import lanes
from tvmconv.compute.tiling import cut
from tvmconv.compute.toom_cook_block import held
from tvmconv.compute.toom_cook_voxel_inputs import Chunk, VoxelInputs

__all__ = ["ToomCookVoxelKernel"]


@dataclass(frozen=True)
class _Place:
    """Products along depth and height: the tile and the run, the phases in their classes, points.

    ``row`` is where their sums lie.
    """

    tile: tuple[Any, Any]
    members: tuple[Any, Any]
    points: tuple[Any, Any]
    row: Any = None


@dataclass(frozen=True)
class ToomCookVoxelKernel(VoxelInputs):
    """Emits the statements of a kernel."""

    @property
    def _line(self) -> Region:
        return Region(self.frame.scratch, self.form.offsets[2], self.form.line_shape)

    @property
    def _row(self) -> Region:
        size = self.form.lanes * self.form.factor
        return Region(self.frame.scratch, self.form.offsets[3], (size,))

    def block(self, n: Any, depth: Any, height: Any) -> None:
        """One task: block ``depth``, ``height`` of sample ``n``."""
        form = self.form
        first = depth * i64(form.axes[0].block), height * i64(form.axes[1].block)
        counts = [
            tirx.min(i64(axis.block), i64(axis.tiles) - begin)
            for axis, begin in zip(form.axes[:2], first, strict=True)
        ]
        runs = tirx.floordiv(counts[1] + i64(form.rows - 1), i64(form.rows))
        self._clear(first)
        channels, most = form.work.plan.in_channels, form.channels
        with T.serial(i64(0), i64(-(-channels // most))) as number:
            begin = number * i64(most)
            rest = channels % most
            count = tirx.min(i64(most), i64(channels) - begin) if rest else i64(most)
            if rest:
                with T.If(count == i64(most)):
                    with T.Then():
                        self._copy(n, first, begin, most)
                    with T.Else():
                        self._copy(n, first, begin, rest)
            else:
                self._copy(n, first, begin, most)
            with T.grid(counts[0], runs) as tile:
                self._multiply(tuple(tile), Chunk(begin, count, most))
        with T.grid(counts[0], runs) as tile:
            for one in form.combinations:
                self._transform_back(one, tuple(tile))
            self._write_run(n, first, tuple(tile), counts[1])

    # --- sums and products
    # -----------------------------------------------------------------------------

    def _multiply(self, tile: tuple[Any, Any], chunk: Chunk) -> None:
        """All products of a tile of depth and a run of rows with some channels."""
        form = self.form
        columns = [axis.needed() for axis in form.axes[:2]]
        with T.grid(*(i64(len(some)) for some in columns)) as column:
            row = self._sum(tile, column, chunk)
            for kinds in itertools.product(*(range(len(axis.classes)) for axis in form.axes[:2])):
                groups = [axis.classes[k] for axis, k in zip(form.axes[:2], kinds, strict=True)]
                jobs = [form.jobs(number, group) for number, group in enumerate(groups)]
                spans: list[Any] = []
                for some, which, number in zip(jobs, column, columns, strict=True):
                    first = [sum(job.column < k for job in some) for k in range(len(number))]
                    counts = [sum(job.column == k for job in some) for k in range(len(number))]
                    spans += [pick(first, which), pick(counts, which)]
                spans = held(spans)
                with T.grid(*spans[1::2]) as steps:
                    numbers = [begin + step for begin, step in zip(spans[::2], steps, strict=True)]
                    a, b, p, q = held(
                        [
                            pick([getattr(job, name) for job in some], at)
                            for name in ("member", "point")
                            for some, at in zip(jobs, numbers, strict=True)
                        ]
                    )
                    place = _Place(tile, (a, b), (p, q), row)
                    for k, group in enumerate(form.axes[2].classes):
                        one = form.combination((*kinds, k))
                        with T.serial(i64(0), i64(len(group.places))) as member:
                            if form.tiling.fetch:
                                self._ask(kinds, numbers, k, tile, member, chunk)
                            self._products(one, place, member, chunk)

    def _sum(self, tile: tuple[Any, Any], column: Sequence[Any], chunk: Chunk) -> Any:
        """The sums along depth and height of all places of a row, and where they lie.

        An input row alone is its own sum.
        """
        form = self.form
        near, steps, signs, single = [], [], [], []
        begins = tile[0], tile[1] * i64(form.rows)
        for axis, begin, which in zip(form.axes[:2], begins, column, strict=True):
            some = axis.needed()
            terms = [KINDS[kind] for kind, _ in some]
            first, step, sign, alone = held(
                [
                    begin * i64(axis.outputs) + pick([offset for _, offset in some], which),
                    pick([one[-1][0] for one in terms], which),
                    pick([int(one[-1][1]) for one in terms], which),
                    pick([int(len(one) == 1) for one in terms], which),
                ]
            )
            near.append(first)
            steps.append(step)
            signs.append(sign)
            single.append(alone == i64(1))
        corners = [
            self._input_row(near[0] + a * steps[0], near[1] + b * steps[1])
            for a, b in itertools.product((0, 1), repeat=2)
        ]
        corners = held(corners)
        rows = [corners[:2], corners[2:]]

        def added(axis: int, x: Any, y: Any, size: int) -> Any:
            """The sum, or the difference: known, or found by a factor."""
            found = {KINDS[kind][-1][1] for kind, _ in form.axes[axis].needed() if kind != "x"}
            if len(found) == 1:
                return x + y if found == {1} else x - y
            one, other = tirx.const(1, self._dtype), tirx.const(-1, self._dtype)
            factor = tirx.Select(signs[axis] < i64(0), other, one)
            return x + y * tirx.Broadcast(factor, size)

        def emit(deep: bool, high: bool) -> None:
            for place, target, size in self._pieces(chunk):

                def load(a: int, b: int, place: Any = place, size: int = size) -> Any:
                    return self.frame.scratch[lanes(rows[a][b] + place, size)]

                def across(a: int, load: Any = load, size: int = size) -> Any:
                    return added(1, load(a, 0), load(a, 1), size) if high else load(a, 0)

                value = added(0, across(0), across(1), size) if deep else across(0)
                at = i64(form.offsets[0]) + target
                T.buffer_store(self.frame.scratch, value, [lanes(at, size)])

        emitted = [(False, True), (True, False), (True, True)]
        for deep, high in [*emitted, *([(False, False)] if form.rows > 1 else [])]:
            which = [
                one if no else tirx.Not(one)
                for one, no in zip(single, (not deep, not high), strict=True)
            ]
            with T.If(tirx.all(*which)), T.Then():
                emit(deep, high)
        if form.rows > 1:
            return i64(form.offsets[0])
        return held([tirx.Select(tirx.all(*single), rows[0][0], i64(form.offsets[0]))])[0]

    def _pieces(self, chunk: Chunk) -> Iterator[tuple[Any, Any, int]]:
        """The pieces of the sums of a run, inside of the loops over them.

        Where their inputs lie beside those of the first row, where they are stored, their elements.
        """
        form, size = self.form, self.form.tiling.vector
        places = chunk.count * i64(form.axes[2].outputs)
        if form.rows == 1:
            count = places * i64(form.pitch)
            with T.serial(i64(0), tirx.floordiv(count + i64(size - 1), i64(size))) as number:
                yield number * i64(size), number * i64(size), size
            return
        below = form.axes[1].outputs * form.row_size
        with T.serial(i64(0), places) as place:
            for row in range(form.rows):
                done = 0
                for piece in form.pieces:
                    source = place * i64(form.pitch) + i64(row * below + done)
                    target = place * i64(form.place_size) + i64(row * form.pitch + done)
                    yield source, target, piece
                    done += piece

    def _products_at(
        self, one: Combination, place: _Place, member: Any, point: Any, filter_: Any
    ) -> Any:
        """Where the products of a row begin."""
        form = self.form
        shape = (
            *(len(group.places) for group in one.classes),
            *(len(group.scheme.points) for group in one.classes),
            form.work.plan.filters,
        )
        region = Region(None, form.products_at(one), shape)
        index = region.at(*place.members, member, *place.points, point, filter_)
        d, run = place.tile
        number = d * i64(form.runs) + run
        of_tile = (form.offsets[2] - form.offsets[1]) // (form.tiling.block[0] * form.runs)
        return i64(form.offsets[1]) + number * i64(of_tile) + index * i64(form.lanes)

    def _products(self, one: Combination, place: _Place, member: Any, chunk: Chunk) -> None:
        """Those of one row of sums and one phase of the width, register tile by register tile."""
        form = self.form
        done = 0
        for parts, registers in cut(form.vectors, form.tiling.width):
            first = 0
            for blocks, filters in cut(form.work.plan.filters, form.tiling.registers):
                with T.grid(i64(parts), i64(blocks)) as (part, block):
                    start = (i64(done) + part * i64(registers)) * i64(form.tiling.vector)
                    which = i64(first) + block * i64(filters)
                    self._tile(one, place, member, chunk, (start, registers), (which, filters))
                first += blocks * filters
            done += parts * registers

    def _tile(
        self, one: Combination, place: _Place, member: Any, chunk: Chunk,
        registers: tuple[Any, int], filters: tuple[Any, int],
    ) -> None:  # fmt: skip
        """A register tile: all points of the width, some registers of tiles, some filters."""
        form, size = self.form, self.form.tiling.vector
        scratch, axis, group = self.frame.scratch, form.axes[2], one.classes[2]
        scheme = group.scheme
        offsets = sorted({o + step for kind, o in scheme.points for step, _ in KINDS[kind]})
        shared = len(scheme.weights) == 1
        sums = self._local(len(scheme.points) * filters[1] * registers[1])
        inputs = self._local(len(offsets) * registers[1])
        made = self._local(len(scheme.points) * registers[1])
        weights = self._local((1 if shared else len(scheme.points)) * filters[1])
        region = one.weights(self.frame.weights, 0)
        zero = tirx.Broadcast(tirx.const(0, self._dtype), size)

        def cell(p: int, f: int, m: int) -> Any:
            return i64((p * filters[1] + f) * registers[1] + m)

        cells = list(
            itertools.product(range(len(scheme.points)), range(filters[1]), range(registers[1]))
        )
        for p, f, m in cells:
            T.buffer_store(sums, zero, [cell(p, f, m)])
        points = [
            point if len(of.scheme.weights) > 1 else i64(0)
            for point, of in zip(place.points, one.classes, strict=False)
        ]
        with T.serial(i64(0), chunk.count) as c:
            row = place.row + c * i64(axis.outputs * form.place_size) + registers[0]
            for k, o in enumerate(offsets):
                where = [
                    (start + o) % axis.outputs * form.place_size + (start + o) // axis.outputs
                    for start in group.starts
                ]
                for m in range(registers[1]):
                    at = row + pick(where, member) + i64(m * size)
                    value = scratch[lanes(at, size)]
                    T.buffer_store(inputs, value, [i64(k * registers[1] + m)])
            for p, (kind, o) in enumerate(scheme.points):
                for m in range(registers[1]):
                    terms = [
                        (inputs[i64(offsets.index(o + step) * registers[1] + m)], sign)
                        for step, sign in KINDS[kind]
                    ]
                    T.buffer_store(made, signed_sum(terms), [i64(p * registers[1] + m)])
            for p in range(1 if shared else len(scheme.points)):
                for f in range(filters[1]):
                    weight = region.load(
                        *place.members, member, i64(0), *points, i64(p),
                        chunk.first + c, filters[0] + i64(f),
                    )  # fmt: skip
                    value = tirx.Broadcast(weight, size)
                    T.buffer_store(weights, value, [i64(p * filters[1] + f)])
            for p, f, m in cells:
                weight = weights[i64((0 if shared else p) * filters[1] + f)]
                product = made[i64(p * registers[1] + m)] * weight
                T.buffer_store(sums, sums[cell(p, f, m)] + product, [cell(p, f, m)])
        several = form.channels < form.work.plan.in_channels
        for p, f, m in cells:
            at = self._products_at(one, place, member, i64(p), filters[0] + i64(f))
            index = lanes(at + registers[0] + i64(m * size), size)
            value = sums[cell(p, f, m)]
            if several:
                before = tirx.Select(chunk.first == i64(0), zero, scratch[index])
                value = before + value
            T.buffer_store(scratch, value, [index])

    # --- outputs
    # ---------------------------------------------------------------------------------------

    def _transform_back(self, one: Combination, tile: tuple[Any, Any]) -> None:
        """From the products of a tile of depth and height to its outputs, with the bias."""
        form, size = self.form, self.form.tiling.vector
        filters = form.work.plan.filters
        extents = [i64(len(group.places)) for group in one.classes]
        with T.grid(*extents, i64(filters), i64(form.vectors)) as (*members, f, m):
            places = [
                pick(group.places, member)
                for group, member in zip(one.classes, members, strict=True)
            ]

            def load(d: int, h: int, w: int) -> Any:
                place = _Place(tile, (members[0], members[1]), (i64(d), i64(h)))
                at = self._products_at(one, place, members[2], i64(w), f)
                return self.frame.scratch[lanes(at + m * i64(size), size)]

            def store(a: int, b: int, c: int, value: Any) -> None:
                d, h, w = (
                    place + i64(j * axis.axis.stride)
                    for place, j, axis in zip(places, (a, b, c), form.axes, strict=True)
                )
                value = value + tirx.Broadcast(self.frame.bias[f], size)
                at = self._line.at(d, h, w * i64(filters) + f, m * i64(size))
                T.buffer_store(self.frame.scratch, value, [lanes(at, size)])

            self._back([group.scheme for group in one.classes], load, store)

    def _back(self, schemes: list[Scheme], load: Any, store: Any) -> None:
        """The depth from memory, then the rest in registers."""
        depth, height, width = schemes
        rows, columns = len(height.points), len(width.points)
        plane, row = self._local(rows * columns), self._local(columns)
        for a in range(depth.outputs):
            for h, w in itertools.product(range(rows), range(columns)):
                terms = [(load(d, h, w), sign) for d, sign in enumerate(depth.result[a])]
                T.buffer_store(plane, signed_sum(terms), [i64(h * columns + w)])
            for b in range(height.outputs):
                for w in range(columns):
                    terms = [
                        (plane[i64(h * columns + w)], sign)
                        for h, sign in enumerate(height.result[b])
                    ]
                    T.buffer_store(row, signed_sum(terms), [i64(w)])
                for c in range(width.outputs):
                    terms = [(row[i64(w)], sign) for w, sign in enumerate(width.result[c])]
                    store(a, b, c, signed_sum(terms))

    def _write_run(self, n: Any, first: tuple[Any, Any], tile: tuple[Any, Any], count: Any) -> None:
        """The output rows of a tile of depth and a run of the block's ``count`` rows of tiles."""
        form, plan = self.form, self.form.work.plan
        depth, height, width = form.axes
        with T.grid(i64(form.rows), i64(depth.span), i64(height.span)) as (row, a, b):
            number = tile[1] * i64(form.rows) + row
            od = (first[0] + tile[0]) * i64(depth.span) + a
            oh = (first[1] + number) * i64(height.span) + b
            inside = tirx.all(number < count, od < i64(depth.axis.out), oh < i64(height.axis.out))
            with T.If(inside), T.Then():
                sums = width.span * plan.filters
                channels = range(plan.filters) if plan.channels_first else [None]
                for f in channels:
                    chosen = list(range(f or 0, sums, plan.filters if plan.channels_first else 1))
                    lane = row * i64(form.pitch)
                    self._write((n, od, oh, f), (a, b), i64(0), chosen, form.row_vectors, lane=lane)

    def _local(self, count: int) -> Any:
        """Registers."""
        return T.sblock_alloc_buffer((i64(count),), self._kind, scope="local")
