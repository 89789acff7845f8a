"""The statements of the voxel form's kernel: pack a row, multiply it, finish a row of positions."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import widen
from tvmconv.compute.frame import LINE_BYTES, Region, divide, first_position, i64, positions
from tvmconv.compute.row_writer import RowWriter
from tvmconv.compute.shuffle import Matrix, copy_transposed, lanes
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.voxels import Pass, VoxelForm

__all__ = ["VoxelKernel"]

#: Bytes of an input that is asked for ahead: smaller ones stay in the second-level cache.
_FAR = 1 << 20


@dataclass(frozen=True)
class _Tile:
    """A task tile: its sample, and the first and behind the last of its planes and rows."""

    n: Any
    planes: tuple[Any, Any]
    rows: tuple[Any, Any]
    lowest: Any


@dataclass(frozen=True)
class VoxelKernel(RowWriter):
    """Emits the statements of a voxel kernel."""

    form: VoxelForm

    @property
    def _packed(self) -> Region:
        return Region(self.frame.scratch, 0, self.form.packed_shape)

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
        tile = _Tile(n, planes, rows, rows[0] - i64(halo))
        self._clear()
        with T.serial(i64(0), planes[1] - planes[0] + i64(slots - 1)) as step:
            d = planes[0] - i64(slots - 1) + step
            with T.serial(i64(0), rows[1] - tile.lowest) as r:
                h = tile.lowest + r
                self._begin(tile, d, r)
                there = tirx.all(
                    d >= i64(0), d < i64(depth.size), h >= i64(0), h < i64(height.size)
                )
                with T.If(there), T.Then():
                    self._multiply(tile, d, h)
                with T.If(tirx.all(d >= planes[0], h >= rows[0])), T.Then():
                    line = self._slot(d), r
                    self._finish(n, (d, h), line, i64(0), self.form.vectors)

    def _slot(self, q: Any) -> Any:
        slots = self.form.line_shape[0]
        return tirx.floormod(q, i64(slots))

    def _clear(self) -> None:
        """The borders of packed rows; and the sums before those of the tile."""
        first, (before, after) = self.form.origin, self.form.border
        last = first + min(after, self.form.work.plan.axes[2].size)
        zero = tirx.const(0, self._dtype)
        for start, count in ((first - before, before), (last, first + after - last)):
            with T.grid(i64(self.form.packed_shape[0]), i64(count)) as (c, v):
                self._packed.store(zero, c, i64(start) + v)
        if self.form.halo:
            with T.grid(i64(self.form.line_shape[0]), i64(self.form.halo)) as (slot, r):
                self._start(slot, r)

    def _begin(self, tile: _Tile, d: Any, r: Any) -> None:
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

    # --- packing
    # -----------------------------------------------------------------------------------

    def _pack(self, place: tuple[Any, Any, Any], first: Any, channels: int) -> None:
        """Some channels of a row: ``[channel][voxel]``."""
        work, origin = self.form.work, self.form.origin
        width = work.plan.axes[2]
        count = min(self.form.border[1], width.size)

        def element(w: Any, c: Any) -> Any:
            stored = self.frame.input(*place, w, first + c)
            return widen(stored, work.input_dtype, self._dtype)

        if work.plan.channels_first:
            for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
                with (
                    T.grid(i64(channels), i64(vectors)) as (c, o),
                    T.vectorized(i64(0), i64(size)) as v,
                ):
                    voxel = i64(start) + o * i64(size) + v
                    self._packed.store(element(voxel, c), c, i64(origin) + voxel)
            return
        source = Matrix(
            element,
            lambda v, c, size: self.frame.input_register(*place, v, first + c, size),
            parts=work.input_dtype == self._dtype,
        )
        target = Matrix(
            lambda c, v, value: self._packed.store(value, c, i64(origin) + v),
            lambda c, v, size, value: T.buffer_store(
                self.frame.scratch, value, [lanes(self._packed.at(c, i64(origin) + v), size)]
            ),
        )
        # bfloat16 is widened element by element: its shifts do not take registers of rows.
        vector = 1 if work.input_dtype == "bfloat16" else self.form.tiling.vector
        copy_transposed(count, channels, vector, self._dtype, source, target, along=True)

    # --- products
    # ----------------------------------------------------------------------------------

    def _multiply(self, tile: _Tile, d: Any, h: Any) -> None:
        """All products of an input row."""
        channels, most = self.form.work.plan.in_channels, self.form.packed_shape[0]
        place = (tile.n, d, h)
        whole, rest = divmod(channels, most)
        for start, blocks, count in ((0, whole, most), (whole * most, 1, rest)):
            if not blocks * count:
                continue
            with T.serial(i64(0), i64(blocks)) as block:
                first = i64(start) + block * i64(count)
                self._pack(place, first, count)
                for number, one in enumerate(self.form.passes):
                    self._pass(one, tile, place, (first, count), asks=number == 0)

    def _pass(
        self, one: Pass, tile: _Tile, place: tuple[Any, Any, Any], channels: tuple[Any, int],
        *, asks: bool,
    ) -> None:  # fmt: skip
        """Those of a pass, for each depth tap whose outputs this task makes."""
        depth, height, _ = self.form.work.plan.axes
        _, d, h = place
        dilation = i64(depth.dilation)
        # Positions at which a phase of the pass has an output.
        phases = [depth.phases[which[0][0]] for _, which in one.sums]
        begin = tirx.max(tile.planes[0], i64(min(phase.first for phase in phases)))
        behind = max(phase.first + phase.count for phase in phases)
        end = tirx.min(tile.planes[1], i64(behind))
        lowest = tirx.floordiv(begin - d + i64(depth.dilation - 1), dilation)
        a0 = tirx.max(lowest, i64(one.run.first))
        highest = tirx.floordiv(end - i64(1) - d, dilation) + i64(1)
        a1 = tirx.min(highest, i64(one.run.first + one.run.count))
        taps = [b for b, _ in one.sums]
        near, far = (h + i64(b * height.dilation) for b in (min(taps), max(taps)))
        with T.If(tirx.all(near < tile.rows[1], far >= tile.rows[0])), T.Then():
            with T.serial(i64(0), tirx.max(a1 - a0, i64(0))) as step:
                a = a0 + step
                for start, groups, vectors in self.form.groups:
                    with T.serial(i64(0), i64(groups)) as group:
                        size = self.form.tiling.vector
                        voxel = i64(start * size) + group * i64(vectors * size)
                        self._group(one, tile, place, a, channels, voxel, vectors, asks)

    def _group(
        self, one: Pass, tile: _Tile, place: tuple[Any, Any, Any], a: Any,
        channels: tuple[Any, int], voxel: Any, vectors: int, asks: bool,
    ) -> None:  # fmt: skip
        """A group of registers: sums from the ring, products of the channels, sums to the ring."""
        _, d, h = place
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
        first, count = channels
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
        if asks:
            claims = tirx.all(a == i64(0), first == i64(0), h >= tile.rows[0])
            with T.If(claims), T.Then():
                self._claim(place, voxel, vectors)
        run = len(one.products)
        begin = i64(one.offset) + ((a - i64(one.run.first)) * i64(plan.in_channels) + first) * i64(
            run
        )
        with T.serial(i64(0), i64(count)) as c:
            if asks:
                self._ask(
                    tile,
                    place,
                    channels,
                    c,
                    voxel,
                    vectors,
                    (a - i64(one.run.first), one.run.count),
                )
            before = None
            for number, (t, cell) in enumerate(one.products):
                reach = self.form.reach(t, one.sums[cell][1][0][2])
                if reach != before:
                    before = reach
                    for m in range(vectors):
                        shift = self.form.origin + reach + m * size
                        at = self._packed.at(c, voxel + i64(shift))
                        T.buffer_store(inputs, self.frame.scratch[lanes(at, size)], [i64(m)])
                weight = tirx.Broadcast(
                    self.frame.weights[begin + c * i64(run) + i64(number)], size
                )
                for m in range(vectors):
                    target = i64(cell * vectors + m)
                    T.buffer_store(sums, sums[target] + inputs[i64(m)] * weight, [target])
        for cell, index in cells:
            T.buffer_store(self.frame.scratch, sums[cell], [index])

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

    def _ask(
        self, tile: _Tile, place: tuple[Any, Any, Any], channels: tuple[Any, int], c: Any,
        voxel: Any, vectors: int, tap: tuple[Any, int],
    ) -> None:  # fmt: skip
        """Bring a share of the inputs that are packed next into the second-level cache.

        Of the channels that follow, or of the next row.
        """
        plan, size = self.form.work.plan, self.form.tiling.vector
        item = numpy_dtype(self.form.work.input_dtype).itemsize
        if math.prod(plan.input_shape[1:]) * item <= _FAR:
            return
        n, d, h = place
        first, count = channels
        depth, height, _ = plan.axes
        behind = first + i64(2 * count) > i64(plan.in_channels)
        last = tirx.all(behind, h + i64(1) >= tirx.min(tile.rows[1], i64(height.size)))
        row = tirx.Select(last, tirx.max(tile.lowest, i64(0)), tirx.Select(behind, h + i64(1), h))
        plane = tirx.min(tirx.Select(last, d + i64(1), d), i64(depth.size - 1))
        start = tirx.Select(behind, i64(0), first + i64(count))
        line = LINE_BYTES // item
        lines = -(-vectors * size // line)
        each = -(-lines // tap[1])
        for step in range(each):
            number = tap[0] * i64(each) + i64(step)
            if plan.channels_first:
                element = self.frame.x[n, start + c, plane, row, voxel + number * i64(line)]
            elif count % line or count == plan.in_channels:
                # The voxels of a group lie in one piece; beyond a row the next one begins.
                at = c * i64(vectors * size) + number * i64(line)
                element = self.frame.x[n, plane, row, voxel, start + at]
            else:
                w, part = divide(c * i64(lines) + number, count // line)
                element = self.frame.x[n, plane, row, voxel + w, start + part * i64(line)]
            address = tirx.address_of(element)
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))
