"""The frame of the column form's kernel: make a plane, sum, finish the rows of a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.frame import Region, first_position, i64, positions
from tvmconv.compute.row_writer import RowWriter
from tvmconv.compute.shuffle import lanes

if TYPE_CHECKING:
    from tvmconv.compute.column_sums import Bundle, PlaneSums
    from tvmconv.compute.lane_sums import Sum

__all__ = ["ColumnSumsKernel"]


@dataclass(frozen=True)
class ColumnSumsKernel(RowWriter):
    """Emits the loops over planes, rows and sums."""

    form: PlaneSums

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
                        self._finish(n, (q, first_row + r), (), i64(0), self.form.vectors)

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
        """A row of a plane, ``count`` voxels."""
        raise NotImplementedError

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
        """Add the products of a bundle to the sums of a register tile."""
        raise NotImplementedError
