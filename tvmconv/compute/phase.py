"""The phase form: every output phase is a dense stride-1 correlation with its own few taps.

For an output row, depth and height are fixed, so their taps are two short loops with exact bounds.
Along the width the phases are code: each has its taps, its voxels ``q`` (a run of consecutive input
positions) and its register tiles of voxels x channel lanes. No zero is inserted, nothing is added
up in memory, every output is written once.

Along the width a border of zeros in the packed rows stands for the inputs that do not exist. Their
products are zeros where the kernel is finite; kernels that are not go to the definition form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, finish, input_rows, lanes
from tvmconv.compute.frame import LINE_BYTES, Frame, Region, Row, RowTiles, divide, i64
from tvmconv.compute.lanes import Group, groups, packed_size, tap_order
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Phase
from tvmconv.policies import numpy_dtype

__all__ = ["Emitter", "PhaseForm", "border", "needs_packing"]

#: Cycles from asking memory for a line to having it.
_LATENCY = 700


def border(work: Workload) -> tuple[int, int]:
    """Zeros needed left and right of an input row."""
    axis = work.plan.axes[2]
    left = right = 0
    for phase in axis.phases:
        if phase.taps and phase.count:
            left = max(left, (phase.taps - 1) * axis.dilation - phase.first)
            right = max(right, phase.first + phase.count - axis.size)
    return left, right


def needs_packing(work: Workload) -> bool:
    """Whether a register tile cannot read the input as it lies.

    Another dtype, another layout, a border.
    """
    return (
        work.input_dtype != work.accumulate_dtype
        or work.plan.channels_first
        or border(work) != (0, 0)
    )


@dataclass(frozen=True)
class PhaseForm:
    """The phase form of one workload under one tiling."""

    work: Workload
    tiling: Tiling

    @property
    def folded(self) -> Workload:
        """The workload that the kernel computes."""
        return self.work.folded() if self.tiling.fold else self.work

    @property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes."""
        tiling = self.tiling
        return groups(self.folded, tiling.vector, tiling.registers, tiling.last)

    @property
    def packs(self) -> bool:
        """Whether input rows are copied to scratch."""
        return self.tiling.pack or needs_packing(self.folded)

    @property
    def flows(self) -> bool:
        """Whether each input is read where it lies, and by the sums of one voxel alone."""
        return not self.packs and all(axis.is_flat for axis in self.folded.plan.axes)

    @property
    def border(self) -> tuple[int, int]:
        """Zeros left and right of a packed row."""
        return border(self.folded)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Packed input: planes (one a depth tap), rows, voxels with the border, channels."""
        if not self.packs:
            return (0, 0, 0, 0)
        plan = self.folded.plan
        left, right = self.border
        return (*self.tiles.packed, left + plan.axes[2].size + right, plan.in_channels)

    @property
    def tiles(self) -> RowTiles:
        """The task tiles."""
        tiling = self.tiling
        return RowTiles(self.folded, tiling.rows, tiling.splits, tiling.stationary)

    @property
    def has_line(self) -> bool:
        """Whether output rows pass through scratch: where they must, and for long activations."""
        if finish.needs_line(self.work):
            return True
        whole_rows = self.tiling.splits == 1 and not self.tiling.stationary
        return whole_rows and finish.is_long(self.work)

    @property
    def line_shape(self) -> tuple[int, ...]:
        """An output row in scratch before it is finished: voxels, channels.

        Of stationary tiles all rows of a phase, (depth, height, voxels, channels).
        """
        if not self.has_line:
            return (0, 0)
        depth, height, width = self.folded.plan.axes
        row = (width.out, self.folded.plan.filters // self.tiling.splits)
        if not self.tiling.stationary:
            return row
        return (-(-depth.out // depth.stride), -(-height.out // height.stride), *row)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return (self.folded.plan.kernel_shape, *self.groups)

    def packer(self) -> Any:
        """The function that packs the weights."""
        return lanes.packer(self.work, self.folded, self.groups)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        return lanes.pack(self.work, self.folded, self.groups, kernel, bias)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        rows = Region(None, 0, self.rows_shape).size
        line = Region(None, 0, self.line_shape).size
        cut_lanes = self.groups
        bias = cut_lanes[-1].lane_offset + cut_lanes[-1].blocks * cut_lanes[-1].lanes
        size = packed_size(self.folded, cut_lanes)
        frame = Frame(self.folded, self.tiles.count, size, bias, rows + line)
        emit = Emitter(self, frame, rows, 0)
        pack = emit.pack if self.packs else None
        parts = emit.parts()

        def tile(n: Any, index: Any) -> None:
            self.tiles.emit(frame, n, index, pack, parts)

        return frame.kernel(tile), frame


@dataclass(frozen=True)
class Emitter:
    """Emits the statements of a phase kernel.

    Packed rows and a row before it is finished lie at their offsets in scratch.
    """

    form: PhaseForm
    frame: Frame
    line_offset: int
    rows_offset: int

    @property
    def _rows(self) -> Region:
        return Region(self.frame.scratch, self.rows_offset, self.form.rows_shape)

    def pack(self, n: Any, start: tuple[Any, Any]) -> None:
        """Copy the input rows that the tile reads."""
        input_rows.copy(self.form, self.frame, self._rows, n, start)

    def parts(self) -> list[Callable[[Row], None]]:
        """What is emitted for an output row: each phase of the width, then what finishes it."""
        found: list[Callable[[Row], None]] = []
        for index, phase in enumerate(self.form.folded.plan.axes[2].phases):
            if phase.count:
                found.append(partial(self._phase, index, phase))
        if self.form.has_line:
            found.append(self._finish)
        return found

    def _phase(self, index: int, phase: Phase, row: Row) -> None:
        for number, group in enumerate(self.form.groups):
            if phase.taps:
                self._tiles(row, phase, group, f"{index}_{number}")
            else:
                self._fill(row, phase, group)

    def _finish(self, row: Row) -> None:
        vector = self.form.tiling.vector
        finish.emit(self.frame, row, self._line(row), vector, self._first_channel(row))

    def _line(self, row: Row) -> Region:
        """The output row in scratch."""
        lines = Region(self.frame.scratch, self.line_offset, self.form.line_shape)
        if not self.form.tiling.stationary:
            return lines
        depth, height, _ = self.form.folded.plan.axes
        return lines.part(divide(row.od, depth.stride)[0], divide(row.oh, height.stride)[0])

    def _first_channel(self, row: Row) -> Any:
        """The first channel of the row's part."""
        splits = self.form.tiling.splits
        return row.split * i64(self.form.folded.plan.filters // splits) if splits > 1 else i64(0)

    def _tiles(self, row: Row, phase: Phase, group: Group, name: str) -> None:
        done = 0
        for part, (tiles, width) in enumerate(cut(phase.count, self.form.tiling.width)):
            share = group.blocks // self.form.tiling.splits
            first = phase.first + done
            extents = (share, tiles) if self.form.tiling.channels_outer else (tiles, share)
            with T.grid(*map(i64, extents)) as (a, b):
                with T.sblock(f"tile_{name}_{part}"):
                    outer = T.axis.spatial(i64(extents[0]), a)
                    inner = T.axis.spatial(i64(extents[1]), b)
                    block, tile = (
                        (outer, inner) if self.form.tiling.channels_outer else (inner, outer)
                    )
                    self.frame.touch()
                    block = block + row.split * i64(share)
                    q = i64(first) + tile * i64(width)
                    self._tile(row, phase, group, f"{name}_{part}", block, q, width)
            done += tiles * width

    def _tile(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, q: Any, width: int
    ) -> None:
        """A register tile: ``width`` voxels from input position ``q`` on, one block of lanes."""
        work = self.form.folded
        dtype = work.accumulate_dtype
        sums = T.sblock_alloc_buffer((i64(width), i64(group.lanes)), dtype, scope="local")
        weights = self._weights(group)
        order = tap_order(work.plan.axes[2])
        base = order.index(phase.residue)
        counts = (row.depth.count, row.height.count, i64(phase.taps), i64(work.plan.in_channels))
        self._claim(row, phase, group, block, q, width)
        if self.form.flows:
            self._products(row, group, block, q, width, sums)
        else:
            with T.grid(i64(width), i64(group.lanes), *counts) as (w, v, a, b, t, c):
                with T.sblock(f"{blocks.ACCUMULATE}_{name}"):
                    vw = T.axis.spatial(i64(width), w)
                    vv = T.axis.spatial(i64(group.lanes), v)
                    va, vb = T.axis.reduce(counts[0], a), T.axis.reduce(counts[1], b)
                    vt, vc = T.axis.reduce(counts[2], t), T.axis.reduce(counts[3], c)
                    with T.init():
                        lane = i64(group.lane_offset) + block * i64(group.lanes) + vv
                        T.buffer_store(sums, self.frame.bias[lane], [vw, vv])
                    x = self._input(row, va, vb, q + vw, vt, vc)
                    kd, kh = row.depth.kernel_index(va), row.height.kernel_index(vb)
                    product = x * weights.load(block, kd, kh, i64(base) + vt, vc, vv)
                    T.buffer_store(sums, sums[vw, vv] + product, [vw, vv])
        line = self.form.has_line
        for start, vectors, size in finish.chunks(group.valid, self.form.tiling.vector):
            extents = (width, vectors, size)
            last = (finish.unfinished if line else finish.result)(work, extents)
            # Unrolled and vectorised here: the sums are registers, and a block with named
            # intermediate results takes no primitive.
            with T.unroll(i64(0), i64(width)) as w, T.unroll(i64(0), i64(vectors)) as o:
                with T.vectorized(i64(0), i64(size)) as v:
                    lane = i64(start) + o * i64(size) + v
                    channel = i64(group.first) + block * i64(group.lanes) + lane
                    value = sums[w, lane]
                    self._store(row, phase, q + w, channel, last.at(value, w, o, v))

    def _products(self, row: Row, group: Group, block: Any, q: Any, width: int, sums: Any) -> None:
        """The sums of a register tile whose voxels have one tap.

        Their inputs are read once and come from far: each step asks for some of a later tile's.
        """
        weights, vector = self._weights(group), self.form.tiling.vector
        first = i64(group.lane_offset) + block * i64(group.lanes)
        zero = i64(0)

        def each(body: Callable[[Any, Any], None]) -> None:
            with (
                T.unroll(zero, i64(width)) as w,
                T.unroll(zero, i64(group.lanes // vector)) as o,
                T.vectorized(zero, i64(vector)) as v,
            ):
                body(w, o * i64(vector) + v)

        each(lambda w, lane: T.buffer_store(sums, self.frame.bias[first + lane], [w, lane]))
        with T.serial(zero, i64(self.form.folded.plan.in_channels)) as c:
            place = (row.depth.input_index(zero), row.height.input_index(zero))
            self._ahead(row.n, place, q + i64(self._distance(width, group)), c, width)

            def add(w: Any, lane: Any) -> None:
                x = self._input(row, zero, zero, q + w, zero, c)
                product = x * weights.load(block, zero, zero, zero, c, lane)
                T.buffer_store(sums, sums[w, lane] + product, [w, lane])

            each(add)

    def _distance(self, width: int, group: Group) -> int:
        """Voxels from a tile to the one whose inputs are brought: the time that memory takes."""
        channels = self.form.folded.plan.in_channels
        cycles = channels * width * group.lanes // self.form.tiling.vector // 2
        return width * -(-_LATENCY // max(1, cycles))

    def _ahead(self, n: Any, place: tuple[Any, Any], q: Any, c: Any, width: int) -> None:
        """Bring a share of the inputs from voxel ``q`` on into the cache, behind the row's end too.

        ``place`` is the plane and the row. The rows of memory follow each other; what is behind
        the last of them is only asked for.
        """
        line = LINE_BYTES // numpy_dtype(self.form.work.input_dtype).itemsize
        for start in range(0, width, line):
            element = self.frame.input(n, *place, q, c * i64(width) + i64(start))
            address = tirx.address_of(element)
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3, 1))

    def _claim(self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int) -> None:
        """Bring the places of a tile's outputs into the cache while its sums are made.

        Stores in a row would wait for them, one after the other.
        """
        if self.form.has_line:
            self._claim_row(row, phase, group, block, q)
            return
        axis = self.form.folded.plan.axes[2]
        line = LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize
        channel = i64(group.first) + block * i64(group.lanes)
        with T.unroll(i64(0), i64(width)) as i:
            w = (q + i) * i64(axis.stride) + i64(phase.residue - axis.lo)
            # The last one too: outputs need not begin with a line.
            for start in (*range(0, group.valid - 1, line), group.valid - 1):
                self.frame.claim(row.n, (row.od, row.oh, w), channel + i64(start))

    def _claim_row(self, row: Row, phase: Phase, group: Group, block: Any, q: Any) -> None:
        """The same for rows of channels first, which are written when all of their tiles are done.

        A tile asks for one line of each of its channels, and into the second-level cache: the
        other phases would ask for the same lines, and a row is more than the first level holds.
        Where sums have several taps the stores do not count, and the requests cost more. Those of
        stationary tiles would come long before the stores.
        """
        work = self.form.work
        axis = work.plan.axes[2]
        if work.mixed_axes or not work.plan.channels_first or self.form.tiling.stationary:
            return
        if any(one.max_taps > 1 for one in work.plan.axes):
            return
        if phase != next(one for one in axis.phases if one.taps and one.count):
            return
        w = q * i64(axis.stride) + i64(phase.residue - axis.lo)
        with T.serial(i64(0), i64(group.valid)) as lane:
            channel = i64(group.first) + block * i64(group.lanes) + lane
            self.frame.claim(row.n, (row.od, row.oh, w), channel, near=False)

    def _fill(self, row: Row, phase: Phase, group: Group) -> None:
        """A phase without taps: activation(bias)."""
        share = group.blocks * group.valid // self.form.tiling.splits
        line = self.form.has_line
        for start, vectors, size in finish.chunks(share, self.form.tiling.vector):
            last = (finish.unfinished if line else finish.result)(self.form.folded, (size,))
            with T.grid(i64(phase.count), i64(vectors)) as (w, o):
                with T.vectorized(i64(0), i64(size)) as v:
                    lane = row.split * i64(share) + i64(start) + o * i64(size) + v
                    value = self.frame.bias[i64(group.lane_offset) + lane]
                    channel = i64(group.first) + lane
                    self._store(row, phase, i64(phase.first) + w, channel, last.at(value, v))

    def _weights(self, group: Group) -> Region:
        plan = self.form.folded.plan
        kernel = tuple(axis.kernel for axis in plan.axes)
        shape = (group.blocks, *kernel, plan.in_channels, group.lanes)
        return Region(self.frame.weights, group.offset, shape)

    def _input(self, row: Row, a: Any, b: Any, q: Any, t: Any, c: Any) -> Any:
        w = q - t * i64(self.form.folded.plan.axes[2].dilation)
        if not self.form.packs:
            d, h = row.depth.input_index(a), row.height.input_index(b)
            return self.frame.input(row.n, d, h, w, c)
        place = self.form.tiles.place(row, a, b)
        return self._rows.load(*place, w + i64(self.form.border[0]), c)

    def _store(self, row: Row, phase: Phase, q: Any, channel: Any, value: Any) -> None:
        axis = self.form.folded.plan.axes[2]
        w = q * i64(axis.stride) + i64(phase.residue - axis.lo)
        if self.form.has_line:
            self._line(row).store(value, w, channel - self._first_channel(row))
            return
        self.frame.output(value, row.n, (row.od, row.oh, w), channel)
