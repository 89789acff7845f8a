"""The statements of the matrix form's kernel: copy some voxels, multiply them with all panels."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import storage
from tvmconv.compute.frame import Frame, Region, divide, i64
from tvmconv.compute.pair_voxels import begin_of
from tvmconv.compute.shuffle import interleave, lanes

if TYPE_CHECKING:
    from tvmconv.compute.matrix import MatrixForm

__all__ = ["MatrixKernel"]


@dataclass(frozen=True)
class MatrixKernel:
    """Emits the statements of such a kernel."""

    form: MatrixForm
    frame: Frame

    @property
    def _rows(self) -> Region:
        return Region(self.frame.scratch, 0, self.form.rows_shape)

    def task(self, n: Any, chunk: Any) -> None:
        """The voxels of a task, copied, then multiplied with all panels."""
        tiling = self.form.tiling
        first = chunk * i64(tiling.rows)
        count = tirx.min(i64(tiling.rows), i64(self.form.tiles) - first)
        size, pieces = tiling.rows * tiling.width, self.form.pieces
        voxels, places = (
            T.sblock_alloc_buffer((i64(n),), "int64", scope="local") for n in (size, size * pieces)
        )
        with T.grid(count, i64(tiling.width)) as (tile, m):
            number = tile * i64(tiling.width) + m
            T.buffer_store(voxels, self.form.voxel(first * i64(tiling.width) + number), [number])
            for k in range(pieces):
                voxel = voxels[number] + i64(k * self.form.piece)
                at = number * i64(pieces) + i64(k)
                T.buffer_store(places, begin_of(self.form.work, voxel), [at])
        self._copy(n, count, voxels)
        done = 0
        for blocks, filters in self.form.blocks:
            with T.grid(i64(blocks), i64(self.form.panels_shape[1]), count) as (k, tap, tile):
                block = i64(done) + k
                self._fetch(n, first, (block, tap, tile))
                self._tile(n, tile, places, (block, tap), filters)
            done += blocks

    def _copy(self, n: Any, count: Any, voxels: Any) -> None:
        """Copy the voxels of a task, channel by channel: each is another place of memory."""
        vector, width = self.form.tiling.vector, self.form.tiling.width
        channels, zero = self.form.work.plan.in_channels, i64(0)
        with T.grid(i64(channels), count) as (channel, tile):
            for m in range(width):
                voxel = voxels[tile * i64(width) + i64(m)]
                value = self.frame.input_register(n, zero, zero, voxel, channel, vector)
                at = self._rows.at(tile, channel, i64(m * vector))
                T.buffer_store(self.frame.scratch, value, [lanes(at, vector)])

    def _fetch(self, n: Any, first: Any, place: tuple[Any, Any, Any]) -> None:
        """Ask for a share of the next task's inputs, channel by channel as they will be copied.

        What is behind the last one is only asked for.
        """
        blocks, taps, channels, _ = self.form.panels_shape
        rows, (block, tap, tile) = self.form.tiling.rows, place
        share = -(-channels // (blocks * taps))
        for i in range(share):
            number = ((block * i64(taps) + tap) * i64(share) + i64(i)) * i64(rows) + tile
            channel, later = divide(number, rows)
            voxel = self.form.voxel((first + i64(rows) + later) * i64(self.form.tiling.width))
            channel = tirx.min(channel, i64(channels - 1))
            address = tirx.address_of(self.frame.input(n, i64(0), i64(0), voxel, channel))
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))

    def _tile(self, n: Any, tile: Any, places: Any, panel: tuple[Any, Any], filters: int) -> None:
        """A register tile: some registers of voxels x some filters, their taps along the width."""
        (block, tap), work = panel, self.form.work
        vector, width = self.form.tiling.vector, self.form.tiling.width
        stride, whole = work.plan.axes[2].stride, lanes(i64(0), vector)
        columns, first = filters * stride, self.form.first(block)
        weights = Region(self.frame.weights, 0, self.form.panels_shape)
        sums, inputs = (
            T.sblock_alloc_buffer((i64(count), i64(vector)), work.accumulate_dtype, scope="local")
            for count in (columns * width, width)
        )
        cells = list(itertools.product(range(columns), range(width)))
        for q, m in cells:
            bias = self.frame.bias[first + i64(q // stride)]
            T.buffer_store(sums, tirx.Broadcast(bias, vector), [i64(q * width + m), whole])
        with T.serial(i64(0), i64(work.plan.in_channels)) as c:
            for m in range(width):
                at = self._rows.at(tile, c, i64(m * vector))
                T.buffer_store(inputs, self.frame.scratch[lanes(at, vector)], [i64(m), whole])
            for q in range(columns):
                weight = tirx.Broadcast(weights.load(block, tap, c, i64(q)), vector)
                for m in range(width):
                    cell = (i64(q * width + m), whole)
                    T.buffer_store(sums, sums[cell] + inputs[i64(m), whole] * weight, list(cell))
        self._leave(n, tile, places, (tap, first, filters), sums)

    def _leave(
        self, n: Any, tile: Any, places: Any, panel: tuple[Any, Any, int], sums: Any
    ) -> None:
        """Store the sums of a register tile through the activation, its taps interleaved."""
        (tap, first, filters), work = panel, self.form.work
        vector, width = self.form.tiling.vector, self.form.tiling.width
        _, height, across = work.plan.axes
        stride, kept = across.stride, storage(work.output_dtype)
        shape = (filters * stride, width, vector)
        done = T.sblock_alloc_buffer(tuple(map(i64, shape)), kept, scope="local")
        last = finish.result(work, (vector,))
        for q, m in itertools.product(range(shape[0]), range(width)):
            with T.vectorized(i64(0), i64(vector)) as v:
                value = last.at(sums[i64(q * width + m), v], v)
                T.buffer_store(done, value, [i64(q), i64(m), v])
        a, b = divide(tap, height.kernel)
        begin = (a * i64(height.out) + b) * i64(across.out)
        whole, pieces = lanes(i64(0), vector), self.form.pieces
        for f, m in itertools.product(range(filters), range(width)):
            taps = [done[i64(f * stride + t), i64(m), whole] for t in range(stride)]
            mixed = interleave(vector, f"{kept}x{vector}", taps)
            first_place = (tile * i64(width) + i64(m)) * i64(pieces)
            if pieces == 1:
                start = places[first_place] + begin
                for j in range(stride):
                    self._store(mixed[j], n, start + i64(j * vector), first + i64(f), vector)
                continue
            size = vector * stride // pieces
            row = T.sblock_alloc_buffer((i64(vector * stride),), kept, scope="local")
            for j in range(stride):
                T.buffer_store(row, mixed[j], [lanes(i64(j * vector), vector)])
            for k in range(pieces):
                start = places[first_place + i64(k)] + begin
                some = row[lanes(i64(k * size), size)]
                self._store(some, n, start, first + i64(f), size)

    def _store(self, value: Any, n: Any, start: Any, filter_: Any, size: int) -> None:
        """Store ``size`` outputs side by side."""
        zero = i64(0)
        self.frame.output(value, n, (zero, zero, lanes(start, size)), filter_)
