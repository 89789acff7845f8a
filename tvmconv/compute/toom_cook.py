"""The Toom-Cook form: minimal filtering in three axes on the phases, and one matrix product per point.

A block of tiles is one task. Its input is copied to scratch once (widened, channels last, zeros where there is none), transformed (sums of
inputs, shared by the phases where they overlap), and multiplied point by point: ``[tiles, in channels] x [in channels, lanes]``. The
products of one phase and one block of channels are transformed back, and leave through bias and activation to their places in the output.

Tiles are cells of ``stride * outputs`` outputs an axis. Cells over the end are computed from zeros and not stored.
NaN and infinities of an input spread within its tiles.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, finish, points
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Frame, Region, Row, Taps, divide, i64
from tvmconv.compute.lanes import Group, groups
from tvmconv.compute.points import Combination, pick
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.transforms import KINDS, AxisTiles, Column
from tvmconv.compute.workload import Workload
from tvmconv.policies import numpy_dtype

__all__ = ["ToomCookForm"]

#: Elements between equal places of two columns or points beyond their size: powers of two would fall on one set of the cache.
_SKEW = 16
#: Bytes of one point's weights up to which the next point's are brought into the first-level cache too, else into the second.
_NEAR = 16 << 10
#: Activations that are a few instructions.
_SHORT = {"linear", "relu", "relu6", "leaky_relu"}
#: Bytes of a line of the cache.
_LINE = 64


@dataclass(frozen=True)
class ToomCookForm:
    """The Toom-Cook form of one workload under one tiling."""

    work: Workload
    tiling: Tiling

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles, AxisTiles]:
        """The three axes, cut into tiles."""
        tiling = self.tiling
        made = [
            AxisTiles(axis, m, t, number >= 3 - tiling.shared)
            for number, (axis, m, t) in enumerate(
                zip(self.work.plan.axes, tiling.outputs, tiling.block, strict=True)
            )
        ]
        return made[0], made[1], made[2]

    @cached_property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes; their weights are placed by `combinations`."""
        return groups(self.work, self.tiling.vector, self.tiling.registers)

    @cached_property
    def combinations(self) -> list[Combination]:
        """The phases by their numbers of taps in the three axes."""
        return points.combinations(self.work, self.axes, self.groups)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.work.plan.kernel_shape, self.tiling.outputs, *self.groups)

    def combination(self, classes: Sequence[int]) -> Combination:
        """The combination of one class an axis."""
        counts = tuple(len(axis.classes) for axis in self.axes)
        return self.combinations[int(np.ravel_multi_index(tuple(classes), counts))]

    def packer(self) -> Any:
        """The function that packs the weights."""
        return points.packer(self.work, self.combinations, self.groups)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy, bit for bit."""
        return points.pack(self.work, self.combinations, self.groups, kernel, bias)

    @property
    def channels(self) -> int:
        """Input channels in scratch: whole vectors."""
        vector = self.tiling.vector
        return -(-self.work.plan.in_channels // vector) * vector

    @property
    def inputs_shape(self) -> tuple[int, int, int, int]:
        """The input of a block in scratch."""
        depth, height, width = (axis.inputs for axis in self.axes)
        return depth, height, width, self.channels

    @property
    def column_shape(self) -> tuple[int, int, int, int]:
        """One transformed input: tiles in three axes, channels."""
        depth, height, width = (axis.block + axis.halo for axis in self.axes)
        return depth, height, width, self.channels

    @property
    def column_count(self) -> int:
        """Most transformed inputs that stand at once."""
        counts = [
            len(axis.columns) if axis.shared else max(len(c.scheme.points) for c in axis.classes)
            for axis in self.axes
        ]
        return counts[0] * counts[1] * counts[2]

    @property
    def packed_size(self) -> int:
        """Elements of the packed kernel."""
        return points.packed_size(self.combinations)

    @property
    def column_stride(self) -> int:
        """Elements from one column to the next."""
        return _size(self.column_shape) + _SKEW

    @property
    def rows_shape(self) -> tuple[int, int, int, int]:
        """Outputs of a block in scratch, where rows cannot leave the registers finished."""
        if not finish.needs_line(self.work):
            return (0, 0, 0, 0)
        depth, height, width = self.axes
        out = self.work.plan.axes[2].out
        return (depth.span * depth.block, height.span * height.block, out, self.work.plan.filters)

    def product_stride(self, lanes: int) -> int:
        """Elements from one tile's products to the next tile's."""
        return max(c.points for c in self.combinations) * lanes + _SKEW

    @cached_property
    def offsets(self) -> tuple[int, int, int, int]:
        """Where the columns, the products and the rows begin in scratch, and its end."""
        first = _size(self.inputs_shape)
        second = first + self.column_count * self.column_stride
        tiles = self.tiling.block[0] * self.tiling.block[1] * self.tiling.block[2]
        lanes = max(group.lanes for group in self.groups)
        third = second + tiles * self.product_stride(lanes)
        return first, second, third, third + _size(self.rows_shape)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        tiles = 1
        for axis in self.axes:
            tiles *= axis.blocks
        last = self.groups[-1]
        frame = Frame(
            self.work,
            tiles,
            self.packed_size,
            last.lane_offset + last.blocks * last.lanes,
            self.offsets[3],
        )
        return frame.kernel(_Emitter(self, frame).block), frame


@dataclass(frozen=True)
class _Lines(Region):
    """A region that begins at an expression."""

    begin: Any = None

    def at(self, *indices: Any) -> Any:
        return super().at(*indices) + self.begin


@dataclass(frozen=True)
class _Emitter:
    """Emits the statements of a kernel."""

    form: ToomCookForm
    frame: Frame

    @property
    def dtype(self) -> str:
        return self.form.work.accumulate_dtype

    @property
    def vector(self) -> int:
        return self.form.tiling.vector

    def local(self, *shape: int) -> Any:
        return T.sblock_alloc_buffer(tuple(map(i64, shape)), self.dtype, scope="local")

    def block(self, n: Any, index: Any) -> None:
        """One task: a block of tiles of sample ``n``."""
        rest, w = divide(index, self.form.axes[2].blocks)
        d, h = divide(rest, self.form.axes[1].blocks)
        first = tuple(
            number * i64(axis.block)
            for number, axis in zip((d, h, w), self.form.axes, strict=True)
        )
        self._copy(n, first)
        self._phases(n, first, [], [])
        if finish.needs_line(self.form.work):
            self._rows(n, first)

    def _count(self, number: int, first: Any, halo: bool = False) -> Any:
        """Tiles of the block along an axis that exist."""
        axis = self.form.axes[number]
        more = axis.halo if halo else 0
        if axis.tiles % axis.block == 0:
            return i64(axis.block + more)
        return tirx.min(i64(axis.block), i64(axis.tiles) - first[number]) + i64(more)

    def _copy(self, n: Any, first: tuple[Any, ...]) -> None:
        """The input of the block: widened, channels last, zeros where there is no input."""
        form, plan = self.form, self.form.work.plan
        target = Region(self.frame.scratch, 0, form.inputs_shape)
        extents = (*form.inputs_shape[:3], plan.in_channels)
        with T.grid(*map(i64, extents)) as indices:
            with T.sblock(blocks.PACK):
                *place, channel = T.axis.remap("SSSS", list(indices))
                inside, where = [], []
                for axis, tile, p in zip(form.axes, first, place, strict=True):
                    position = tile * i64(axis.outputs) + p + i64(axis.lowest)
                    where.append(position)
                    inside += [position >= i64(0), position < i64(axis.axis.size)]
                stored = self.frame.input(n, *where, channel)
                value = widen(stored, form.work.input_dtype, self.dtype)
                zero = tirx.const(0, self.dtype)
                target.store(
                    tirx.if_then_else(tirx.all(*inside), value, zero), *place, channel
                )

    def _phases(
        self, n: Any, first: tuple[Any, ...], classes: list[int], members: list[Any]
    ) -> None:
        """All phases, axis by axis: the input is transformed where the shared axes begin."""
        if len(classes) == 3 - self.form.tiling.shared:
            self._transform(first, classes, members)
        if len(classes) == 3:
            self._combination(n, first, classes, members)
            return
        for index, group in enumerate(self.form.axes[len(classes)].classes):
            if len(group.places) == 1:
                self._phases(n, first, [*classes, index], [*members, i64(0)])
                continue
            with T.serial(i64(0), i64(len(group.places))) as member:
                self._phases(n, first, [*classes, index], [*members, member])

    def _own(self, number: int, classes: Sequence[int], members: Sequence[Any]) -> tuple[Any, Sequence[Column]]:
        """The sums of inputs that stand for an axis, and the input from which they count."""
        axis = self.form.axes[number]
        if axis.shared:
            return i64(0), axis.columns
        group = axis.classes[classes[number]]
        return pick(group.starts, members[number]), group.scheme.points

    def _transform(self, first: tuple[Any, ...], classes: list[int], members: list[Any]) -> None:
        """From the input to its sums: along the depth from memory, then height and width in registers."""
        form = self.form
        source = Region(self.frame.scratch, 0, form.inputs_shape)
        begins, needed = zip(
            *(self._own(number, classes, members) for number in range(3)), strict=True
        )
        reach = [max(offset + KINDS[kind][-1][0] for kind, offset in some) + 1 for some in needed]
        counts = [self._count(number, first, halo=True) for number in range(3)]
        plane = self.local(reach[1] * reach[2], self.vector)
        line = self.local(reach[2], self.vector)
        with T.grid(*counts, i64(form.channels // self.vector)) as (*tile, chunk):
            begin = [
                t * i64(axis.outputs) + start
                for t, axis, start in zip(tile, form.axes, begins, strict=True)
            ]
            column = 0
            with T.vectorized(i64(0), i64(self.vector)) as v:
                channel = chunk * i64(self.vector) + v

                def load(d: int, h: int, w: int) -> Any:
                    place = (begin[0] + i64(d), begin[1] + i64(h), begin[2] + i64(w))
                    return source.load(*place, channel)

                for kind, d in needed[0]:
                    for h, w in itertools.product(range(reach[1]), range(reach[2])):
                        terms = [(load(d + step, h, w), sign) for step, sign in KINDS[kind]]
                        T.buffer_store(plane, _sum(terms), [i64(h * reach[2] + w), v])
                    for kind_h, h in needed[1]:
                        for w in range(reach[2]):
                            terms = [
                                (plane[i64((h + step) * reach[2] + w), v], sign)
                                for step, sign in KINDS[kind_h]
                            ]
                            T.buffer_store(line, _sum(terms), [i64(w), v])
                        for kind_w, w in needed[2]:
                            terms = [(line[i64(w + step), v], sign) for step, sign in KINDS[kind_w]]
                            index = self._sums(i64(column), tile, channel)
                            T.buffer_store(self.frame.scratch, _sum(terms), [index])
                            column += 1

    def _sums(self, column: Any, tile: Sequence[Any], channel: Any) -> Any:
        """Where the sum of inputs ``column`` of a tile lies."""
        form = self.form
        inside = Region(None, form.offsets[0], form.column_shape).at(*tile, channel)
        return inside + column * i64(form.column_stride)

    def _product(self, tile: Sequence[Any], point: Any, lanes: int, lane: Any) -> Any:
        """Where the product ``point`` of a tile lies."""
        form = self.form
        number = Region(None, 0, form.tiling.block).at(*tile)
        stride = i64(form.product_stride(lanes))
        return i64(form.offsets[1]) + number * stride + point * i64(lanes) + lane

    def _combination(
        self, n: Any, first: tuple[Any, ...], classes: list[int], members: list[Any]
    ) -> None:
        """One phase: its products, transformed back and stored, one block of channels after the other."""
        one = self.form.combination(classes)
        for number, group in enumerate(self.form.groups):
            with T.serial(i64(0), i64(group.blocks)) as block:
                self._multiply(n, first, one, members, number, block)
                self._finish(n, first, one, members, group, block)

    def _multiply(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        number: int,
        block: Any,
    ) -> None:
        """``[tiles, in channels] x [in channels, lanes]`` for every point."""
        form, group = self.form, self.form.groups[number]
        weights = one.weights(self.frame.weights, number)
        sizes = [len(axis.scheme.points) for axis in one.classes]
        with T.grid(*map(i64, sizes)) as point:
            column, shifts = self._columns(one, members, point)
            shared = [
                p if len(axis.scheme.weights) > 1 else i64(0)
                for p, axis in zip(point, one.classes, strict=True)
            ]
            flat = Region(None, 0, tuple(sizes)).at(*point)
            depth, height = (self._count(axis, first) for axis in (0, 1))
            with T.grid(depth, height) as (d, h):
                done = 0
                rows = self.form.tiling.block[0] * self.form.tiling.block[1]
                total = rows * sum(parts for parts, _ in self._parts())
                before = 0
                for parts, width in self._parts():
                    with T.serial(i64(0), self._present(first, parts, width)) as part:
                        w = i64(done) + part * i64(width)
                        tile = [t + s for t, s in zip((d, h, w), shifts, strict=True)]
                        self._tile(
                            lambda i, c, tile=tile: self.frame.scratch[
                                self._sums(column, [*tile[:2], tile[2] + i], c)
                            ],
                            lambda c, lane: weights.load(*members, block, *shared, c, lane),
                            lambda i, lane, d=d, h=h, w=w: self._product(
                                (d, h, w + i), flat, group.lanes, lane
                            ),
                            width,
                            group.lanes,
                            self._next_weights(
                                weights, (*members, block, *shared), group.lanes, total,
                                ((d * i64(form.tiling.block[1]) + h) * i64(total // rows)
                                 + i64(before) + part),
                            ),
                        )
                        channel = i64(group.first) + block * i64(group.lanes)
                        self._claim(n, first, one, members, (d, h, w), width, flat, channel, group)
                    done += parts * width
                    before += parts

    def _next_weights(
        self, weights: Region, place: tuple[Any, ...], lanes: int, total: int, number: Any
    ) -> Callable[[Any], None]:
        """Bring the next point's weights into the cache, a share with each step of register tile ``number`` of ``total``.

        They come from far, and each is used too shortly to wait for it: without this a quarter of the time is lost.
        """
        size = self.form.work.plan.in_channels
        share = -(-lanes // total)
        room = self.frame.packed_size - total * size * share
        near = size * lanes * np.dtype(self.dtype).itemsize <= _NEAR
        after = weights.at(*place, i64(0), i64(0)) + i64(size * lanes)
        begin = tirx.max(tirx.min(after, i64(room)), i64(0)) + number * i64(size * share)

        def step(c: Any) -> None:
            self._prefetch(self.frame.weights[begin + c * i64(share)], near=near)

        return step

    def _claim(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        tile: tuple[Any, ...],
        width: int,
        point: Any,
        channel: Any,
        group: Group,
    ) -> None:
        """With the last points, bring the places of the outputs into the cache: stores in a row would wait for them."""
        work = self.form.work
        if finish.needs_line(work):
            return
        counts = tuple(axis.scheme.outputs for axis in one.classes)
        output = point - i64(one.points - _size(counts))
        rest, c = divide(output, counts[2])
        a, b = divide(rest, counts[1])
        line = _LINE // numpy_dtype(work.output_dtype).itemsize
        with T.If(output >= i64(0)), T.Then(), T.unroll(i64(0), i64(width)) as i:
            outs, _ = self._places(first, one, members, (*tile[:2], tile[2] + i), (a, b, c))
            place = [
                tirx.min(out, i64(axis.axis.out - 1))
                for out, axis in zip(outs, self.form.axes, strict=True)
            ]
            for start in range(0, group.valid, line):
                where = self.frame.y[(n, *place, channel + i64(start))]
                self._prefetch(where, write=True)

    def _prefetch(self, element: Any, *, write: bool = False, near: bool = True) -> None:
        address = tirx.address_of(element)
        locality = 3 if near else 2
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, int(write), locality, 1))

    def _parts(self) -> list[tuple[int, int]]:
        """Register tiles along a row of the block: how many, and the tiles of each."""
        axis = self.form.axes[2]
        width = self.form.tiling.width
        return cut(axis.tiles, width) if axis.blocks == 1 else [(axis.block // width, width)]

    def _present(self, first: tuple[Any, ...], parts: int, width: int) -> Any:
        axis = self.form.axes[2]
        if axis.blocks == 1 or axis.tiles % axis.block == 0:
            return i64(parts)
        left = i64(axis.tiles + width - 1) - first[2]
        return tirx.min(i64(parts), tirx.floordiv(left, i64(width)))

    def _columns(
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

    def _tile(
        self,
        load: Callable[[Any, Any], Any],
        weight: Callable[[Any, Any], Any],
        place: Callable[[Any, Any], Any],
        width: int,
        lanes: int,
        ahead: Callable[[Any], None],
    ) -> None:
        """A register tile: ``width`` tiles of a row, the lanes of a block."""
        sums = self.local(width, lanes)
        vectors, vector = lanes // self.vector, self.vector

        def each(body: Callable[[Any, Any], None]) -> None:
            with (
                T.unroll(i64(0), i64(width)) as i,
                T.unroll(i64(0), i64(vectors)) as o,
                T.vectorized(i64(0), i64(vector)) as v,
            ):
                body(i, o * i64(vector) + v)

        zero = tirx.const(0, self.dtype)
        each(lambda i, lane: T.buffer_store(sums, zero, [i, lane]))
        with T.serial(i64(0), i64(self.form.work.plan.in_channels)) as c:
            ahead(c)
            each(
                lambda i, lane: T.buffer_store(
                    sums, sums[i, lane] + load(i, c) * weight(c, lane), [i, lane]
                )
            )
        each(
            lambda i, lane: T.buffer_store(
                self.frame.scratch, sums[i, lane], [place(i, lane)]
            )
        )

    def _finish(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        group: Group,
        block: Any,
    ) -> None:
        """Transform the products back, add the bias, and store."""
        form, work = self.form, self.form.work
        line = finish.needs_line(work)
        schemes = [axis.scheme for axis in one.classes]
        sizes = [len(scheme.points) for scheme in schemes]
        counts = [self._count(number, first) for number in range(3)]
        plane = self.local(sizes[1] * sizes[2], self.vector)
        row = self.local(sizes[2], self.vector)
        shape = tuple(scheme.outputs for scheme in schemes)
        # A long formula would be repeated for every output of a tile.
        loops = work.activation.name not in _SHORT or work.output_dtype == "bfloat16"
        ready = self.local(_size(shape), self.vector) if loops else None
        for start, vectors, lanes in finish.chunks(group.valid, self.vector):
            last = (finish.active if line else finish.result)(work, (lanes,))
            with T.grid(*counts, i64(vectors)) as (*tile, chunk):
                with T.vectorized(i64(0), i64(lanes)) as v:
                    lane = i64(start) + chunk * i64(lanes) + v
                    number = i64(group.lane_offset) + block * i64(group.lanes) + lane
                    channel = i64(group.first) + block * i64(group.lanes) + lane

                    def product(d: int, h: int, w: int) -> Any:
                        point = i64((d * sizes[1] + h) * sizes[2] + w)
                        return self.frame.scratch[
                            self._product(tile, point, group.lanes, lane)
                        ]

                    for a in range(schemes[0].outputs):
                        for h, w in itertools.product(range(sizes[1]), range(sizes[2])):
                            terms = [
                                (product(d, h, w), sign)
                                for d, sign in enumerate(schemes[0].result[a])
                            ]
                            T.buffer_store(plane, _sum(terms), [i64(h * sizes[2] + w), v])
                        for b in range(schemes[1].outputs):
                            for w in range(sizes[2]):
                                terms = [
                                    (plane[i64(h * sizes[2] + w), v], sign)
                                    for h, sign in enumerate(schemes[1].result[b])
                                ]
                                T.buffer_store(row, _sum(terms), [i64(w), v])
                            for c in range(schemes[2].outputs):
                                terms = [
                                    (row[i64(w), v], sign)
                                    for w, sign in enumerate(schemes[2].result[c])
                                ]
                                value = _sum(terms) + self.frame.bias[number]
                                if loops:
                                    flat = (a * shape[1] + b) * shape[2] + c
                                    T.buffer_store(ready, value, [i64(flat), v])
                                else:
                                    self._store(
                                        n, first, one, members, tile, (a, b, c), channel,
                                        lambda value=value, last=last, v=v: last.at(value, v),
                                    )  # fmt: skip
                if loops:
                    with T.grid(*map(i64, shape)) as output, T.vectorized(i64(0), i64(lanes)) as v:
                        channel = i64(group.first) + block * i64(group.lanes)
                        channel = channel + i64(start) + chunk * i64(lanes) + v
                        flat = Region(None, 0, shape).at(*output)
                        self._store(
                            n, first, one, members, tile, output, channel,
                            lambda flat=flat, last=last, v=v: last.at(ready[flat, v], v),
                        )  # fmt: skip

    def _store(
        self,
        n: Any,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        tile: Sequence[Any],
        output: Sequence[Any],
        channel: Any,
        value: Callable[[], Any],
    ) -> None:
        """Store an output of a tile if it exists: to its place, or to the rows in scratch."""
        form = self.form
        outs, inside = self._places(first, one, members, tile, output)

        def store() -> None:
            if not finish.needs_line(form.work):
                self.frame.output(value(), n, outs, channel)
                return
            local = [
                out - begin * i64(axis.span)
                for out, begin, axis in zip(outs, first, form.axes, strict=True)
            ]
            region = Region(self.frame.scratch, form.offsets[2], form.rows_shape)
            region.store(value(), *local, channel)

        if not inside:
            store()
            return
        with T.If(tirx.all(*inside)), T.Then():
            store()

    def _places(
        self,
        first: tuple[Any, ...],
        one: Combination,
        members: list[Any],
        tile: Sequence[Any],
        output: Sequence[Any],
    ) -> tuple[tuple[Any, Any, Any], list[Any]]:
        """The voxel of an output of a tile, and the conditions under which it exists."""
        found, inside = [], []
        for axis, group, member, begin, t, j in zip(
            self.form.axes, one.classes, members, first, tile, output, strict=True
        ):
            stride = axis.axis.stride
            place = (begin + t) * i64(axis.span) + (i64(j) if isinstance(j, int) else j) * i64(stride) + pick(group.places, member)
            found.append(place)
            if axis.axis.out % axis.span:
                inside.append(place < i64(axis.axis.out))
        return (found[0], found[1], found[2]), inside

    def _rows(self, n: Any, first: tuple[Any, ...]) -> None:
        """Write the rows that were collected in scratch."""
        form = self.form
        counts = [
            tirx.min(i64(axis.span * axis.block), i64(axis.axis.out) - begin * i64(axis.span))
            for axis, begin in zip(form.axes[:2], first[:2], strict=True)
        ]
        with T.grid(*counts) as (d, h):
            od = first[0] * i64(form.axes[0].span) + d
            oh = first[1] * i64(form.axes[1].span) + h
            shape = form.rows_shape
            begin = (d * i64(shape[1]) + h) * i64(shape[2] * shape[3])
            line = _Lines(self.frame.scratch, form.offsets[2], shape[2:], begin)
            taps = (Taps.of(axis.axis, o) for axis, o in zip(form.axes[:2], (od, oh), strict=True))
            row = Row(n, od, oh, *taps, i64(0), i64(0))
            finish.emit(self.frame, row, line, self.vector)


def _sum(terms: Sequence[tuple[Any, int]]) -> Any:
    """The sum of the terms whose sign is not 0; the first of them is positive."""
    total = None
    for value, sign in terms:
        if not sign:
            continue
        if total is None:
            assert sign == 1
            total = value
        else:
            total = total + value if sign == 1 else total - value
    return total


def _size(shape: Sequence[int]) -> int:
    total = 1
    for extent in shape:
        total *= extent
    return total
