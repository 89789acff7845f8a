"""The statements of the voxel form's kernel: pack a plane, sum, finish the rows of a position."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Frame, Region, divide, first_position, i64, positions
from tvmconv.compute.shuffle import Matrix, copy_transposed, interleave, lanes

if TYPE_CHECKING:
    from tvmconv.compute.voxels import Bundle, Sum, VoxelForm

__all__ = ["VoxelKernel"]


@dataclass(frozen=True)
class VoxelKernel:
    """Emits the statements of a voxel kernel."""

    form: VoxelForm
    frame: Frame

    @property
    def _ring(self) -> Region:
        return Region(self.frame.scratch, 0, self.form.ring_shape)

    @property
    def _line(self) -> Region:
        return Region(self.frame.scratch, self._ring.size, self.form.line_shape)

    @property
    def _row(self) -> Region:
        offset = self._ring.size + self._line.size
        return Region(self.frame.scratch, offset, self.form.row_shape)

    @property
    def _dtype(self) -> str:
        return self.form.work.accumulate_dtype

    def tile(self, n: Any, chunk: Any, block: Any) -> None:
        """Planes and rows of one task tile."""
        depth, height, _ = self.form.work.plan.axes
        slots = self.form.ring_shape[0]
        first_q = chunk * i64(self.form.tiling.planes) + i64(first_position(depth))
        end_q = tirx.min(
            first_q + i64(self.form.tiling.planes), i64(first_position(depth) + positions(depth))
        )
        first_row = block * i64(self.form.tiling.rows) + i64(first_position(height))
        end_row = tirx.min(
            first_row + i64(self.form.tiling.rows), i64(first_position(height) + positions(height))
        )
        lowest = first_row - i64((height.max_taps - 1) * height.dilation)
        with T.serial(i64(0), end_q - first_q + i64(slots - 1)) as step:
            q = first_q - i64(slots - 1) + step
            with T.If(tirx.all(q >= i64(0), q < i64(depth.size))):
                with T.Then():
                    self._pack(n, q, lowest)
            with T.If(step >= i64(slots - 1)):
                with T.Then():
                    with T.serial(i64(0), end_row - first_row) as r:
                        self._position(q, first_row + r, lowest)
                        self._finish(n, q, first_row + r)

    # --- packing
    # -----------------------------------------------------------------------------------

    def _pack(self, n: Any, d: Any, lowest: Any) -> None:
        """The rows of plane ``d``: ``[channel][voxel]`` with zeros where there is no input."""
        _, height, width = self.form.work.plan.axes
        slots, rows, channels, _ = self.form.ring_shape
        # Voxel w of the input lies at w + first; the border is what is read on both sides.
        first, (before, after) = self.form.origin, self.form.border
        last = first + min(after, width.size)
        zero = tirx.const(0, self._dtype)
        slot = tirx.floormod(d, i64(slots))
        self._prepare(n, d, lowest)
        with T.serial(i64(0), i64(rows)) as r:
            h = lowest + r
            with T.If(tirx.all(h >= i64(0), h < i64(height.size))):
                with T.Then():
                    self._copy_row(n, d, h, slot, r, last - first)
                    for start, count in ((first - before, before), (last, first + after - last)):
                        with T.grid(i64(channels), i64(count)) as (c, v):
                            self._ring.store(zero, slot, r, c, i64(start) + v)

    def _prepare(self, n: Any, d: Any, lowest: Any) -> None:
        """What a plane needs before its rows are packed: nothing here."""

    def _copy_row(self, n: Any, d: Any, h: Any, slot: Any, r: Any, count: int) -> None:
        work, first = self.form.work, self.form.origin
        channels = work.plan.in_channels

        def element(w: Any, c: Any) -> Any:
            return widen(self.frame.input(n, d, h, w, c), work.input_dtype, self._dtype)

        if work.plan.channels_first:
            for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
                with (
                    T.grid(i64(channels), i64(vectors)) as (c, o),
                    T.vectorized(i64(0), i64(size)) as v,
                ):
                    voxel = i64(start) + o * i64(size) + v
                    self._ring.store(element(voxel, c), slot, r, c, i64(first) + voxel)
            return
        source = Matrix(
            element,
            lambda v, c, size: self.frame.input_register(n, d, h, v, c, size),
        )
        target = Matrix(
            lambda c, v, value: self._ring.store(value, slot, r, c, i64(first) + v),
            lambda c, v, size, value: T.buffer_store(
                self.frame.scratch, value, [lanes(self._ring.at(slot, r, c, i64(first) + v), size)]
            ),
        )
        # bfloat16 is widened element by element: its shifts do not take registers of rows.
        vector = 1 if work.input_dtype == "bfloat16" else self.form.tiling.vector
        copy_transposed(count, channels, vector, self._dtype, source, target)

    # --- sums
    # --------------------------------------------------------------------------------------

    def _position(self, q: Any, row: Any, lowest: Any) -> None:
        """All sums of one (plane, row) of positions, into the line."""
        group = self.form.tiling.width
        whole, rest = divmod(self.form.vectors, group)
        for start, tiles, vectors in ((0, whole, group), (whole * group, 1, rest)):
            if tiles * vectors:
                with T.serial(i64(0), i64(tiles)) as tile:
                    first = i64(start * self.form.tiling.vector) + tile * i64(
                        vectors * self.form.tiling.vector
                    )
                    self._registers(q, row, lowest, first, vectors)

    def _registers(self, q: Any, row: Any, lowest: Any, first: Any, vectors: int) -> None:
        for chosen, bundles in zip(self.form.passes, self.form.bundles, strict=True):
            sums = self._start(chosen, vectors)
            for bundle in bundles:
                self._products(bundle, chosen, sums, (q, row, lowest, first), vectors)
            for i, one in enumerate(chosen):
                for m in range(vectors):
                    place = self._line.at(
                        i64(self.form.all_sums.index(one)), first + i64(m * self.form.tiling.vector)
                    )
                    T.buffer_store(
                        self.frame.scratch,
                        sums[i64(i * vectors + m)],
                        [lanes(place, self.form.tiling.vector)],
                    )

    def _start(self, chosen: list[Sum], vectors: int) -> Any:
        """Registers of sums that hold the bias."""
        size = self.form.tiling.vector
        sums = T.sblock_alloc_buffer((i64(len(chosen) * vectors),), self._kind, scope="local")
        for i, (_, filter_) in enumerate(chosen):
            for m in range(vectors):
                start = tirx.Broadcast(self.frame.bias[i64(filter_)], size)
                T.buffer_store(sums, start, [i64(i * vectors + m)])
        return sums

    def _products(
        self, bundle: Bundle, chosen: list[Sum], sums: Any, at: tuple[Any, ...], vectors: int
    ) -> None:
        """Add the products of a bundle: loops over its taps and channels, unrolled inside."""
        q, row, lowest, first = at
        size, plan = self.form.tiling.vector, self.form.work.plan
        depth, height, _ = plan.axes
        inputs = T.sblock_alloc_buffer((i64(vectors),), self._kind, scope="local")
        (a0, na), (b0, nb) = bundle.depth.reaching(depth, q), bundle.height.reaching(height, row)
        run = len(bundle.products)
        with T.grid(na, nb, i64(plan.in_channels)) as (i, j, c):
            a, b = a0 + i, b0 + j
            slot = tirx.floormod(q - a * i64(depth.dilation), i64(self.form.ring_shape[0]))
            r = row - b * i64(height.dilation) - lowest
            taps = (
                (a - i64(bundle.depth.first)) * i64(bundle.height.count)
                + b
                - i64(bundle.height.first)
            )
            start = i64(bundle.offset) + (taps * i64(plan.in_channels) + c) * i64(run)
            before = None
            for number, (t, one) in enumerate(bundle.products):
                reach = self.form.reach(t, one[0][2])
                if reach != before:
                    before = reach
                    for m in range(vectors):
                        shift = self.form.origin + reach + m * size
                        place = self._ring.at(slot, r, c, first + i64(shift))
                        x = self.frame.scratch[lanes(place, size)]
                        T.buffer_store(inputs, x, [i64(m)])
                weight = tirx.Broadcast(self.frame.weights[start + i64(number)], size)
                for m in range(vectors):
                    cell = i64(chosen.index(one) * vectors + m)
                    T.buffer_store(sums, sums[cell] + inputs[i64(m)] * weight, [cell])

    @property
    def _kind(self) -> str:
        size = self.form.tiling.vector
        return f"{self._dtype}x{size}" if size > 1 else self._dtype

    # --- output
    # ------------------------------------------------------------------------------------

    def _finish(self, n: Any, q: Any, row: Any) -> None:
        """From the line to the output rows of this position.

        One for each phase of depth and height.
        """
        plan = self.form.work.plan
        depth, height, width = plan.axes
        pairs = itertools.product(range(depth.stride), range(height.stride))
        for index, (a, b) in enumerate(pairs):
            od = q * i64(depth.stride) + i64(a - depth.lo)
            oh = row * i64(height.stride) + i64(b - height.lo)
            inside = tirx.all(od >= i64(0), od < i64(depth.out), oh >= i64(0), oh < i64(height.out))
            with T.If(inside):
                with T.Then():
                    first = index * width.stride * plan.filters
                    if plan.channels_first:
                        for f in range(plan.filters):
                            chosen = [first + r * plan.filters + f for r in range(width.stride)]
                            self._write(n, od, oh, chosen, f)
                    else:
                        chosen = list(range(first, first + width.stride * plan.filters))
                        self._write(n, od, oh, chosen, None)

    def _write(self, n: Any, od: Any, oh: Any, chosen: list[int], channel: int | None) -> None:
        """Interleave the sums of one output row, crop it, apply the activation, write it."""
        plan, size, factor = self.form.work.plan, self.form.tiling.vector, len(chosen)
        width = plan.axes[2]
        if factor & (factor - 1) == 0 and size > 1:
            kind = f"{self._dtype}x{size}"
            with T.serial(i64(0), i64(self.form.vectors)) as m:
                loaded = [
                    self.frame.scratch[lanes(self._line.at(i64(i), m * i64(size)), size)]
                    for i in chosen
                ]
                for j, value in enumerate(interleave(size, kind, loaded)):
                    place = self._row.at(m * i64(size * factor) + i64(j * size))
                    T.buffer_store(self.frame.scratch, value, [lanes(place, size)])
        else:
            with T.grid(i64(self.form.vectors * size), i64(factor)) as (v, j):
                # The chosen sums are equally far apart in the line.
                step = chosen[1] - chosen[0] if factor > 1 else 1
                value = self._line.load(i64(chosen[0]) + j * i64(step), v)
                self._row.store(value, v * i64(factor) + j)
        per_voxel = factor // width.stride
        total = width.out * per_voxel
        for start, vectors, count in finish.chunks(total, size):
            last = finish.result(self.form.work, (count,))
            with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(count)) as v:
                place = i64(start) + o * i64(count) + v
                value = last.at(self._row.load(place), v)
                if channel is None:
                    w, f = divide(place, per_voxel)
                else:
                    w, f = place, i64(channel)
                self.frame.output(value, n, (od, oh, w), f)
