"""The statements of the column form's kernel: products of a row, transposed, then their sums."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import widen
from tvmconv.compute.frame import Region, Row, Taps, i64
from tvmconv.compute.lanes import Group
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.compute.shuffle import Matrix, copy_transposed, lanes
from tvmconv.compute.voxel_kernel import VoxelKernel
from tvmconv.geometry import Phase

if TYPE_CHECKING:
    from tvmconv.compute.columns import ColumnForm
    from tvmconv.compute.voxels import Bundle, Sum

__all__ = ["ColumnKernel"]


@dataclass(frozen=True)
class _Products(Emitter):
    """The register tiles of the product: they start at zero and end in a row in scratch."""

    row: Region
    widened: Region | None = None

    def _tile(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, q: Any, width: int
    ) -> None:
        del phase, name
        dtype, vector = self.form.work.accumulate_dtype, self.form.tiling.vector
        sums = T.sblock_alloc_buffer((i64(width), i64(group.lanes)), dtype, scope="local")
        weights, channels = self._weights(group), self.form.work.plan.in_channels

        def each(body: Callable[[Any, Any], None]) -> None:
            with (
                T.unroll(i64(0), i64(width)) as w,
                T.unroll(i64(0), i64(group.lanes // vector)) as o,
                T.vectorized(i64(0), i64(vector)) as v,
            ):
                body(w, o * i64(vector) + v)

        each(lambda w, lane: T.buffer_store(sums, tirx.const(0, dtype), [w, lane]))
        with T.grid(row.depth.count, row.height.count) as (a, b):
            if self.widened:
                self._widen(self.widened, row, a, b, q, width)
            kd, kh = row.depth.kernel_index(a), row.height.kernel_index(b)
            with T.serial(i64(0), i64(channels)) as c:
                later = q + i64(self._distance(width, group))
                self._ahead(row.n, self._ahead_of(row, a, b), later, c, width)

                def add(w: Any, lane: Any) -> None:
                    if self.widened:
                        x = self.widened.load(w, c)
                    else:
                        x = self._input(row, a, b, q + w, i64(0), c)
                    product = x * weights.load(block, kd, kh, i64(0), c, lane)
                    T.buffer_store(sums, sums[w, lane] + product, [w, lane])

                each(add)
        first = i64(group.first) + block * i64(group.lanes)
        # The lanes past the last column too: they are transposed with the others.
        each(lambda w, lane: self.row.store(sums[w, lane], q + w, first + lane))

    def _widen(self, to: Region, row: Row, a: Any, b: Any, q: Any, width: int) -> None:
        """The inputs of a register tile and a tap, widened; its voxels follow each other."""
        work = self.form.work
        d, h = row.depth.input_index(a), row.height.input_index(b)
        count = width * work.plan.in_channels
        for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
            with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(size)) as v:
                place = i64(start) + o * i64(size) + v
                stored = self.frame.input(row.n, d, h, q, place)
                value = widen(stored, work.input_dtype, work.accumulate_dtype)
                to.store(value, i64(0), place)

    def _ahead_of(self, row: Row, a: Any, b: Any) -> tuple[Any, Any]:
        """The plane and the row whose inputs are brought into the cache.

        Of rows that are widened first, those that are widened next.
        """
        d, h = row.depth.input_index(a), row.height.input_index(b)
        if self.form.packs and not self.widened:
            return (d, h + i64(1)) if self.form.tiling.rows == 1 else (d + i64(1), h)
        return d, h


@dataclass(frozen=True)
class ColumnKernel(VoxelKernel):
    """Emits the statements of a column kernel: the voxel form's, with products as its inputs."""

    columns: ColumnForm

    @property
    def _products_row(self) -> Region:
        shape = (self.columns.voxels, self.columns.lanes)
        return Region(self.frame.scratch, self.columns.offsets[1], shape)

    @property
    def _widens_rows(self) -> bool:
        return self.columns.product.packs and not self.columns.widens_tiles

    def _emitter(self) -> _Products:
        offset = self.columns.offsets[0]
        tile = None
        if self.columns.widens_tiles:
            tile = Region(self.frame.scratch, offset, self.columns.widened_shape)
        return _Products(self.columns.product, self.frame, 0, offset, self._products_row, tile)

    def _prepare(self, n: Any, d: Any, lowest: Any) -> None:
        """Widen the input rows that the products of plane ``d`` read, where rows share them."""
        if not self._widens_rows or not self.columns.tiling.reduced:
            return
        with T.sblock("widen"):
            depth, height, _ = self.form.work.plan.axes
            plane = T.axis.spatial(i64(depth.size), d)
            row = T.axis.spatial(i64(height.size), lowest)
            self.frame.touch()
            self._emitter().pack(n, (plane, row))

    def _copy_row(self, n: Any, d: Any, h: Any, slot: Any, r: Any, count: int) -> None:
        """A row of products, transposed."""
        del slot, count
        depth, height, _ = self.form.work.plan.axes
        with T.sblock("products"):
            plane = T.axis.spatial(i64(depth.size), d)
            row = T.axis.spatial(i64(height.size), h)
            number = T.axis.spatial(i64(self.form.ring_shape[1]), r)
            self.frame.touch()
            lowest = row - number if self.columns.tiling.reduced else row
            if self._widens_rows and not self.columns.tiling.reduced:
                self._emitter().pack(n, (plane, row))
            self._multiply(n, plane, row, lowest)
            self._transpose(tirx.floormod(plane, i64(self.form.ring_shape[0])), number)

    def _multiply(self, n: Any, d: Any, h: Any, lowest: Any) -> None:
        """The products of a row: ``[voxel][column]``."""
        depth, height, _ = self.columns.product_work.plan.axes
        taps = [
            Taps.of(axis, place - i64(axis.lo))
            for axis, place in zip((depth, height), (d, h), strict=True)
        ]
        for part in self._emitter().parts():
            part(Row(n, d, h, taps[0], taps[1], (d, lowest), i64(0)))

    def _transpose(self, slot: Any, r: Any) -> None:
        """The products into the ring: ``[column][voxel]``."""
        form, source = self.columns, self._products_row
        first = i64(self.form.origin)

        def load(v: Any, c: Any, size: int) -> Any:
            return self.frame.scratch[lanes(source.at(v, c), size)]

        def put(c: Any, v: Any, value: Any) -> None:
            self._ring.store(value, slot, r, c, first + v)

        def store(c: Any, v: Any, size: int, value: Any) -> None:
            place = self._ring.at(slot, r, c, first + v)
            T.buffer_store(self.frame.scratch, value, [lanes(place, size)])

        copy_transposed(
            form.voxels,
            form.lanes,
            form.tiling.vector,
            self._dtype,
            Matrix(source.load, load),
            Matrix(put, store),
        )

    def _products(
        self, bundle: Bundle, chosen: list[Sum], sums: Any, at: tuple[Any, ...], vectors: int
    ) -> None:
        """Add the products of a bundle: loops over its taps, unrolled inside."""
        q, row, lowest, first = at
        size, plan = self.form.tiling.vector, self.form.work.plan
        depth, height, width = plan.axes
        (a0, na), (b0, nb) = bundle.depth.reaching(depth, q), bundle.height.reaching(height, row)
        with T.grid(na, nb) as (i, j):
            a, b = a0 + i, b0 + j
            slot = tirx.floormod(q - a * i64(depth.dilation), i64(self.form.ring_shape[0]))
            r = row - b * i64(height.dilation) - lowest
            for t, one in bundle.products:
                residues, filter_ = one
                place = (
                    i64(residues[0]) + a * i64(depth.stride),
                    i64(residues[1]) + b * i64(height.stride),
                    i64(residues[2] + t * width.stride),
                )
                column = self.columns.column(place, filter_)
                shift = self.form.origin + self.form.reach(t, residues[2])
                for m in range(vectors):
                    where = self._ring.at(slot, r, column, first + i64(shift + m * size))
                    cell = i64(chosen.index(one) * vectors + m)
                    value = sums[cell] + self.frame.scratch[lanes(where, size)]
                    T.buffer_store(sums, value, [cell])
