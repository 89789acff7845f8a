"""The statements of the column form's kernel: products of a row, transposed, then their sums.

Inputs come from memory and outputs go there. A register tile of the product asks for the inputs of
a later one, and for the places of its voxels' outputs, which are written when the rows of a plane
are summed: in between they wait in the second-level cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.column_sums_kernel import ColumnSumsKernel
from tvmconv.compute.element import widen
from tvmconv.compute.frame import LINE_BYTES, Region, Row, Taps, i64
from tvmconv.compute.lanes import Group
from tvmconv.compute.phase_kernel import Emitter
from tvmconv.compute.shuffle import lanes, transpose
from tvmconv.compute.tiling import cut
from tvmconv.geometry import Phase
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.column_sums import Bundle
    from tvmconv.compute.columns import ColumnForm
    from tvmconv.compute.lane_sums import Sum

__all__ = ["ColumnKernel"]


@dataclass(frozen=True)
class _Piece:
    """A piece of a row: its first voxel, its voxels, whether this task writes their outputs."""

    name: str
    first: Any
    voxels: int
    own: Any


#: None: while rows are widened.
_NOTHING = _Piece("", 0, 0, False)

#: The products of a channel: its number, and the function of a voxel that is its input.
_Step = Callable[[Any, Callable[[Any], Any]], None]


@dataclass(frozen=True)
class _Products(Emitter):
    """The register tiles of the product: they start at zero and end in scratch."""

    products: Region
    widened: Region | None = None
    ahead: Region | None = None
    piece: _Piece = _NOTHING

    def _tiles(self, row: Row, phase: Phase, group: Group, name: str) -> None:
        """Those of a piece."""
        done = 0
        for part, (tiles, width) in enumerate(cut(self.piece.voxels, self.form.tiling.width)):
            with T.grid(i64(group.blocks), i64(tiles)) as (b, t):
                with T.sblock(f"tile_{self.piece.name}_{name}_{part}"):
                    block = T.axis.spatial(i64(group.blocks), b)
                    tile = T.axis.spatial(i64(tiles), t)
                    self.frame.touch()
                    q = self.piece.first + i64(done) + tile * i64(width)
                    self._tile(row, phase, group, name, block, q, width)
            done += tiles * width

    def _tile(
        self, row: Row, phase: Phase, group: Group, name: str, block: Any, q: Any, width: int
    ) -> None:
        del name
        dtype = self.form.work.accumulate_dtype
        sums = T.sblock_alloc_buffer((i64(width), i64(group.lanes)), dtype, scope="local")
        weights = self._weights(group)
        each = partial(self._each, width, group)
        self._claim(row, phase, group, block, q, width)
        each(lambda w, lane: T.buffer_store(sums, tirx.const(0, dtype), [w, lane]))
        with T.grid(row.depth.count, row.height.count) as (a, b):
            kd, kh = row.depth.kernel_index(a), row.height.kernel_index(b)
            later = q + i64(self._distance(group))

            def step(c: Any, x: Callable[[Any], Any], kd: Any = kd, kh: Any = kh) -> None:
                def add(w: Any, lane: Any) -> None:
                    product = x(w) * weights.load(block, kd, kh, i64(0), c, lane)
                    T.buffer_store(sums, sums[w, lane] + product, [w, lane])

                each(add)

            if self.ahead:
                self._some_channels(self.ahead, row, (a, b), q, width, later, step)
            else:
                self._all_channels(row, (a, b), q, width, later, step)
        first, voxel = i64(group.first) + block * i64(group.lanes), q - self.piece.first
        # The lanes past the last column too: they are transposed with the others.
        each(lambda w, lane: self.products.store(sums[w, lane], voxel + w, first + lane))

    def _each(self, width: int, group: Group, body: Callable[[Any, Any], None]) -> None:
        """``body(voxel, lanes)`` for each register of a tile.

        Where `Tiling.tall` says so, all voxels of one register of columns after the other: LLVM
        keeps the order, and holds the weights of all columns of a step otherwise, or spills them.
        """
        tiling = self.form.tiling
        if not tiling.tall or tiling.registers <= tiling.width:
            super()._each(width, group, body)
            return
        with (
            T.unroll(i64(0), i64(group.lanes // tiling.vector)) as o,
            T.unroll(i64(0), i64(width)) as w,
            T.vectorized(i64(0), i64(tiling.vector)) as v,
        ):
            body(w, o * i64(tiling.vector) + v)

    def _claim(self, row: Row, phase: Phase, group: Group, block: Any, q: Any, width: int) -> None:
        """Bring the places of the outputs at these positions into the cache, of all phases.

        Once, however many blocks the columns have; not those that another task writes.
        """
        del phase
        if group != self.form.groups[0]:
            return
        plan = self.frame.work.plan
        depth, height, across = plan.axes
        line = LINE_BYTES // numpy_dtype(self.frame.work.output_dtype).itemsize
        count = -(-width * across.stride * plan.filters // line)
        with T.If(tirx.all(self.piece.own, block == i64(0))), T.Then():
            with T.grid(i64(depth.stride), i64(height.stride), i64(count)) as (a, b, number):
                place = (
                    row.od * i64(depth.stride) + a - i64(depth.lo),
                    row.oh * i64(height.stride) + b - i64(height.lo),
                    q * i64(across.stride) - i64(across.lo),
                )
                # Elements of a row of voxels follow each other; those outside are only asked for.
                self.frame.claim(row.n, place, number * i64(line))

    def _widen(self, to: Region, row: Row, tap: tuple[Any, Any], q: Any, width: int) -> None:
        """The inputs of a register tile and a tap, widened; its voxels follow each other."""
        work = self.form.work
        d, h = row.depth.input_index(tap[0]), row.height.input_index(tap[1])
        count = width * work.plan.in_channels
        for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
            with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(size)) as v:
                place = i64(start) + o * i64(size) + v
                stored = self.frame.input(row.n, d, h, q, place)
                value = widen(stored, work.input_dtype, work.accumulate_dtype)
                to.store(value, i64(0), place)

    def _all_channels(
        self, row: Row, tap: tuple[Any, Any], q: Any, width: int, later: Any, step: _Step
    ) -> None:
        """The products of a tap, channel by channel."""
        if self.widened:
            self._widen(self.widened, row, tap, q, width)
        with T.serial(i64(0), i64(self.form.work.plan.in_channels)) as c:
            self._ahead(row.n, self._ahead_of(row, *tap), later, c, width)

            def load(w: Any) -> Any:
                if self.widened:
                    return self.widened.load(w, c)
                return self._input(row, *tap, q + w, i64(0), c)

            step(c, load)

    def _some_channels(
        self, to: Region, row: Row, tap: tuple[Any, Any], q: Any, width: int, later: Any,
        step: _Step,
    ) -> None:  # fmt: skip
        """The same, some channels at a time: the next ones are widened before their products.

        The last ones are whole too, and begin with channels that had their products. All blocks
        have a place of their own: two that take turns need more instructions to find them.
        """
        work, (count, _, size) = self.form.work, to.shape
        channels = work.plan.in_channels
        rest = channels % size
        place = (row.depth.input_index(tap[0]), row.height.input_index(tap[1]))

        def widen_part(number: Any) -> None:
            first = number * i64(size)
            if rest:
                first = tirx.min(first, i64(channels - size))
            for w in range(width):
                with T.vectorized(i64(0), i64(size)) as v:
                    stored = self.frame.input(row.n, *place, q + i64(w), first + v)
                    value = widen(stored, work.input_dtype, work.accumulate_dtype)
                    to.store(value, number, i64(w), v)

        def multiply(number: Any, skipped: int = 0) -> None:
            for c in range(skipped, size):

                def load(w: Any, c: int = c) -> Any:
                    return to.load(number, w, i64(c))

                step(number * i64(size) + i64(c - skipped), load)

        def ask(number: Any) -> None:
            self._ahead(row.n, self._ahead_of(row, *tap), later, number, width * size)

        widen_part(i64(0))
        with T.serial(i64(0), i64(count - 1)) as number:
            ask(number)
            widen_part(number + i64(1))
            multiply(number)
        ask(i64(count - 1))
        multiply(i64(count - 1), size - rest if rest else 0)

    def _ahead_of(self, row: Row, a: Any, b: Any) -> tuple[Any, Any]:
        """The plane and the row whose inputs are brought into the cache.

        Of rows that are widened first, those that are widened next.
        """
        d, h = row.depth.input_index(a), row.height.input_index(b)
        if self.form.packs and not (self.widened or self.ahead):
            return (d, h + i64(1)) if self.form.tiling.rows == 1 else (d + i64(1), h)
        return d, h


@dataclass(frozen=True)
class ColumnKernel(ColumnSumsKernel):
    """Emits the statements of a column kernel: sums of products, and these products."""

    columns: ColumnForm

    @property
    def _made(self) -> Region:
        """The products of a piece."""
        return Region(self.frame.scratch, self.columns.offsets[1], self.columns.products_shape)

    @property
    def _widens_rows(self) -> bool:
        return self.columns.product.packs and not self.columns.widens_tiles

    def _emitter(self, piece: _Piece = _NOTHING) -> _Products:
        offset = self.columns.offsets[0]
        tile = ahead = None
        if self.columns.widens_tiles:
            tile = Region(self.frame.scratch, offset, self.columns.widened_shape)
        if self.columns.tiling.stretch:
            tile, ahead = None, tile
        return _Products(
            self.columns.product, self.frame, 0, offset, self._made, tile, ahead, piece
        )

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
        """A row of products, transposed piece by piece."""
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
            slot = tirx.floormod(plane, i64(self.form.ring_shape[0]))
            # Rows of the task tile before hold taps of this one's outputs too.
            own = number >= i64(self.form.ring_shape[1] - self.form.tiling.rows)
            start = 0
            for index, (pieces, voxels) in enumerate(self.columns.pieces):
                with T.serial(i64(0), i64(pieces)) as step, T.sblock(f"piece_{index}"):
                    each = T.axis.spatial(i64(pieces), step)
                    self.frame.touch()
                    piece = _Piece(str(index), i64(start) + each * i64(voxels), voxels, own)
                    self._multiply(n, plane, row, lowest, piece)
                    self._transpose(slot, number, piece)
                start += pieces * voxels

    def _multiply(self, n: Any, d: Any, h: Any, lowest: Any, piece: _Piece) -> None:
        """The products of a piece: ``[voxel][column]``."""
        depth, height, _ = self.columns.product_work.plan.axes
        taps = [
            Taps.of(axis, place - i64(axis.lo))
            for axis, place in zip((depth, height), (d, h), strict=True)
        ]
        for part in self._emitter(piece).parts():
            part(Row(n, d, h, taps[0], taps[1], (d, lowest), i64(0)))

    def _transpose(self, slot: Any, r: Any, piece: _Piece) -> None:
        """The products into the ring: ``[column][voxel]``, without the lanes past the last."""
        size, columns = self.form.tiling.vector, self.columns.columns
        blocks = -(-piece.voxels // size)
        for start, count, kept in (
            (0, columns // size, size),
            (columns - columns % size, 1, columns % size),
        ):
            if not count * kept:
                continue
            with T.grid(i64(blocks), i64(count)) as (block, number):
                voxel, column = block * i64(size), i64(start) + number * i64(size)
                first = i64(self.form.origin) + piece.first + voxel

                def load(i: int, v: Any = voxel, c: Any = column) -> Any:
                    return self.frame.scratch[lanes(self._made.at(v + i64(i), c), size)]

                def store(j: int, value: Any, c: Any = column, v: Any = first) -> None:
                    place = self._ring.at(slot, r, c + i64(j), v)
                    T.buffer_store(self.frame.scratch, value, [lanes(place, size)])

                transpose(size, f"{self._dtype}x{size}", load, store, kept)

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
            # The slot of ``q - a * dilation``, with no variable negative: see `codegen.lowering`.
            slots = self.form.ring_shape[0]
            slot = tirx.floormod(q + a * i64(-depth.dilation % slots), i64(slots))
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
