"""The statements of the phase form's kernel: the phases of a row, their register tiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import blocks, coupling, finish, input_rows, streaming
from tvmconv.compute.frame import LINE_BYTES, Frame, Region, Row, divide, i64
from tvmconv.compute.lanes import Group, tap_order
from tvmconv.compute.shuffle import lanes as lanes_at
from tvmconv.compute.tiling import cut
from tvmconv.geometry import Phase
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.phase import PhaseForm

__all__ = ["Emitter"]

#: Cycles from asking memory for a line to having it.
_LATENCY = 700


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
        for part, (tiles, width) in enumerate(cut(phase.count, self.form.width(group))):
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
        dtype = self.form.folded.accumulate_dtype
        sums = T.sblock_alloc_buffer((i64(width), i64(group.lanes)), dtype, scope="local")
        self._claim(row, phase, group, block, q, width)
        self._sum_up(row, phase, group, name, block, q, width, sums)
        self._leave(row, phase, group, block, q, width, sums)

    def _sum_up(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, q: Any, width: int,
        sums: Any,
    ) -> None:  # fmt: skip
        """The sums of a register tile."""
        work, weights = self.form.folded, self._weights(group)
        order = tap_order(work.plan.axes[2])
        base = order.index(phase.residue)
        counts = (row.depth.count, row.height.count, i64(phase.taps), i64(work.plan.in_channels))
        if self.form.tiling.coupled:
            self._start_at_bias(group, block, width, sums)
            with T.grid(*counts) as (a, b, t, c):
                kd, kh = row.depth.kernel_index(a), row.height.kernel_index(b)
                entry = (kd, kh, i64(base) + t)
                self._step(
                    width, group, sums, (block, *entry, c),
                    partial(self._input_of, row, (a, b), q, t, c),
                )  # fmt: skip
            return
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

    def _leave(
        self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int, sums: Any,
        span: Region | None = None,
    ) -> None:  # fmt: skip
        """The end of a register tile: its sums through the activation to their place.

        In ``span``, where one is given.
        """
        past = partial(self._leave_past, row, phase, group, block, q, width, sums)
        near = partial(self._leave_near, row, phase, group, block, q, width, sums, span)
        streaming.either(self.frame, past, near)

    def _leave_past(
        self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int, sums: Any
    ) -> None:
        """The same past the caches."""
        vector = self.form.tiling.vector
        extents = (width, group.valid // vector, vector)
        last = finish.result(self.form.folded, extents)
        with T.unroll(i64(0), i64(width)) as w, T.unroll(i64(0), i64(extents[1])) as o:
            lane = o * i64(vector)
            channel = i64(group.first) + block * i64(group.lanes) + lane
            index = (row.n, row.od, row.oh, self._voxel(phase, q + w), channel)
            streaming.store(
                self.frame, index, vector, lambda v: last.at(sums[w, lane + v], w, o, v)
            )

    def _leave_near(
        self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int, sums: Any,
        span: Region | None,
    ) -> None:  # fmt: skip
        """The same into the caches."""
        line = self.form.has_line
        for start, vectors, size in finish.chunks(group.valid, self.form.tiling.vector):
            extents = (width, vectors, size)
            last = (finish.unfinished if line else finish.result)(self.form.folded, extents)
            # Unrolled and vectorised here: the sums are registers, and a block with named
            # intermediate results takes no primitive.
            with T.unroll(i64(0), i64(width)) as w, T.unroll(i64(0), i64(vectors)) as o:
                with T.vectorized(i64(0), i64(size)) as v:
                    lane = i64(start) + o * i64(size) + v
                    channel = i64(group.first) + block * i64(group.lanes) + lane
                    value = last.at(sums[w, lane], w, o, v)
                    if span:
                        axis = self.form.folded.plan.axes[2]
                        span.store(value, w * i64(axis.stride) + i64(phase.residue), lane)
                    else:
                        self._store(row, phase, q + w, channel, value)

    def _entry(self, row: Row, tap: Any) -> tuple[Any, Any, Any]:
        """The entry of the packed weights for a row's first taps and ``tap`` of the width."""
        return row.depth.kernel_index(i64(0)), row.height.kernel_index(i64(0)), tap

    def _start_at_bias(self, group: Group, block: Any, width: int, sums: Any) -> None:
        """The sums of a register tile begin as the bias."""
        first = i64(group.lane_offset) + block * i64(group.lanes)

        def begin(w: Any, lane: Any) -> None:
            T.buffer_store(sums, self.frame.bias[first + lane], [w, lane])

        self._each(width, group, begin)

    def _multiply(
        self, row: Row, group: Group, block: Any, q: Any, width: int, sums: Any,
        entry: tuple[Any, ...], tap: Any, channels: tuple[Any, int], ask: Callable[[Any], None],
    ) -> None:  # fmt: skip
        """Add the products of one tap of each axis and so many channels from the first on.

        Its entry of the packed weights, and its number along the width. Step ``c`` begins with
        ``ask(c)``, for what is needed later.
        """
        zero = i64(0)
        with T.serial(zero, i64(channels[1])) as c:
            ask(c)
            channel = channels[0] + c
            self._step(
                width, group, sums, (block, *entry, channel),
                partial(self._input_of, row, (zero, zero), q, tap, channel),
            )  # fmt: skip

    def _step(
        self, width: int, group: Group, sums: Any, place: tuple[Any, ...], x: Callable[[Any], Any],
        first: Any = None,
    ) -> None:  # fmt: skip
        """Add the products of one entry of the weights to ``width`` voxels from the first on.

        ``x(w)`` is the input of one of them.
        """
        weights, vector = self._weights(group), self.form.tiling.vector

        def at(w: Any) -> Any:
            return w if first is None else first + w

        if not self.form.tiling.coupled:

            def add(w: Any, lane: Any) -> None:
                product = x(w) * weights.load(*place, lane)
                T.buffer_store(sums, sums[at(w), lane] + product, [at(w), lane])

            self._each(width, group, add)
            return
        with T.unroll(i64(0), i64(width)) as w, T.unroll(i64(0), i64(group.lanes // vector)) as o:
            start = o * i64(vector)
            register = [at(w), lanes_at(start, vector)]
            some = self.frame.weights[lanes_at(weights.at(*place, start), vector)]
            both = tirx.reinterpret(f"uint16x{2 * vector}", tirx.Broadcast(x(w), vector))
            total = coupling.add_products(sums[tuple(register)], both, some)
            T.buffer_store(sums, total, register)

    def _each(self, width: int, group: Group, body: Callable[[Any, Any], None]) -> None:
        """``body(voxel, lanes)`` for each register of a tile."""
        vector = self.form.tiling.vector
        with (
            T.unroll(i64(0), i64(width)) as w,
            T.unroll(i64(0), i64(group.lanes // vector)) as o,
            T.vectorized(i64(0), i64(vector)) as v,
        ):
            body(w, o * i64(vector) + v)

    def _distance(self, group: Group) -> int:
        """Voxels from a tile to the one whose inputs are brought: the time that memory takes.

        The same for narrower tiles too, or some voxels between them would be left out.
        """
        channels, width = self.form.folded.plan.in_channels, self.form.tiling.width
        cycles = channels * width * group.lanes // self.form.tiling.vector // 2
        return width * -(-_LATENCY // max(1, cycles))

    def _ahead(self, n: Any, place: tuple[Any, Any], q: Any, c: Any, width: int) -> None:
        """Bring a share of the inputs from voxel ``q`` on into the cache, behind the row's end too.

        ``place`` is the plane and the row. The rows of memory follow each other; what is behind
        the last of them is only asked for.
        """
        line = LINE_BYTES // numpy_dtype(self.form.folded.input_dtype).itemsize
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
        streaming.elsewhere(
            self.frame, partial(self._claim_tile, row, phase, group, block, q, width)
        )

    def _claim_tile(
        self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int
    ) -> None:
        """The same where they leave at the end of a tile."""
        line = LINE_BYTES // numpy_dtype(self.form.work.output_dtype).itemsize
        channel = i64(group.first) + block * i64(group.lanes)
        with T.unroll(i64(0), i64(width)) as i:
            w = self._voxel(phase, q + i)
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
        share = self.form.share(group) * group.valid
        before = self.form.first_block(group, row.split) * i64(group.valid)
        line = self.form.has_line
        for start, vectors, size in finish.chunks(share, self.form.tiling.vector):
            last = (finish.unfinished if line else finish.result)(self.form.folded, (size,))
            first = before + i64(start)

            def value(lane: Any, v: Any, last: Any = last) -> Any:
                return last.at(self.frame.bias[i64(group.lane_offset) + lane], v)

            def past(first: Any = first, vectors: int = vectors, size: int = size) -> None:
                with T.grid(i64(phase.count), i64(vectors)) as (w, o):
                    lane = first + o * i64(size)
                    voxel = self._voxel(phase, i64(phase.first) + w)
                    index = (row.n, row.od, row.oh, voxel, i64(group.first) + lane)
                    streaming.store(self.frame, index, size, lambda v: value(lane + v, v))

            def near(first: Any = first, vectors: int = vectors, size: int = size) -> None:
                with T.grid(i64(phase.count), i64(vectors)) as (w, o):
                    with T.vectorized(i64(0), i64(size)) as v:
                        lane = first + o * i64(size) + v
                        channel = i64(group.first) + lane
                        self._store(row, phase, i64(phase.first) + w, channel, value(lane, v))

            streaming.either(self.frame, past, near)

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

    def _input_of(self, row: Row, taps: tuple[Any, Any], q: Any, t: Any, c: Any, w: Any) -> Any:
        """The input of voxel ``w`` of a register tile."""
        return self._input(row, *taps, q + w, t, c)

    def _voxel(self, phase: Phase, q: Any) -> Any:
        """The output of a phase at input position ``q``."""
        axis = self.form.folded.plan.axes[2]
        return q * i64(axis.stride) + i64(phase.residue - axis.lo)

    def _store(self, row: Row, phase: Phase, q: Any, channel: Any, value: Any) -> None:
        w = self._voxel(phase, q)
        if self.form.has_line:
            self._line(row).store(value, w, channel - self._first_channel(row))
            return
        self.frame.output(value, row.n, (row.od, row.oh, w), channel)
