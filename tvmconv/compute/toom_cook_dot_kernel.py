"""The statements of the Toom-Cook form with channels as lanes: sums of rows, products, outputs."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.dot_kernel import DotKernel, Place, Rows, Tile
from tvmconv.compute.dots import powers
from tvmconv.compute.frame import Region, Taps, first_position, i64, outputs, positions
from tvmconv.compute.shuffle import lanes

if TYPE_CHECKING:
    from tvmconv.compute.cook_schemes import CookScheme, Phase, Sum
    from tvmconv.compute.dots import Tiles
    from tvmconv.compute.toom_cook_dots import ToomCookDotForm

__all__ = ["ToomCookDotKernel"]


@dataclass(frozen=True)
class _Walk:
    """Where a task is: sample, tile of the height, outputs of the depth of the current plane."""

    n: Any
    row: Any
    first: Any
    count: Any


@dataclass(frozen=True)
class ToomCookDotKernel(DotKernel):
    """Emits the statements of a kernel."""

    form: ToomCookDotForm

    @property
    def _cells(self) -> Region:
        return Region(self.frame.scratch, self._ring.size, self.form.cells_shape)

    @property
    def _rows(self) -> Region:
        size = self._ring.size + self._cells.size
        return Region(self.frame.scratch, size, self.form.rows_shape)

    def task(self, n: Any, chunk: Any, row: Any) -> None:
        """One tile of the height, through some planes."""
        depth, planes = self.form.work.plan.axes[0], self.form.tiling.planes
        before = depth.max_taps - 1
        first = chunk * i64(planes) + i64(first_position(depth))
        end = tirx.min(first + i64(planes), i64(first_position(depth) + positions(depth)))
        with T.serial(i64(0), end - first + i64(before)) as step:
            q = first - i64(before) + step
            with T.If(tirx.all(q >= i64(0), q < i64(depth.size))), T.Then():
                if self.form.work.plan.channels_first:
                    self._transpose_rows(n, q, row)
                for phase in self.form.phases:
                    self._sums_of_rows(n, q, row, phase)
            with T.If(step >= i64(before)), T.Then():
                walk = _Walk(n, row, *outputs(depth, q, q + i64(1)))
                for tiles in self.form.tiles:
                    self._each(tiles, lambda tile: self._tile(walk, tile))

    def _each(self, tiles: Tiles, emit: Callable[[Tile], None]) -> None:
        """Register tiles: a loop, or code of their own at the ends of a row."""
        if not tiles.whole:
            for number in range(tiles.count):
                first = tiles.first + number * tiles.groups
                emit(Tile(i64(first), tiles.groups, first))
            return
        with T.serial(i64(0), i64(tiles.count)) as number:
            emit(Tile(i64(tiles.first) + number * i64(tiles.groups), tiles.groups, None))

    def _transpose_rows(self, n: Any, d: Any, row: Any) -> None:
        """The rows of a plane that a tile of the height reads, to scratch, channels last."""
        height, channels = self.form.work.plan.axes[1], i64(self.form.work.plan.in_channels)
        lowest = row * i64(self.form.tiling.outputs[1]) + i64(self.form.first_row)
        with T.serial(i64(0), i64(self.form.rows_shape[0])) as r:
            h = lowest + r
            with T.If(tirx.all(h >= i64(0), h < i64(height.size))), T.Then():
                self._transpose(n, d, h, lambda v, c: self._rows.at(r, v * channels + c))

    def _sums_of_rows(self, n: Any, d: Any, row: Any, phase: Phase) -> None:
        """The sums of a plane's rows that a phase multiplies."""
        height, scheme = self.form.work.plan.axes[1], phase.scheme
        lowest = row * i64(scheme.outputs) + i64(phase.start)
        whole = tirx.all(lowest >= i64(0), lowest + i64(scheme.products) <= i64(height.size))
        with T.If(whole):
            with T.Then():
                self._sum_rows(n, d, lowest, phase, whole=True)
            with T.Else():
                self._sum_rows(n, d, lowest, phase, whole=False)

    def _sum_rows(self, n: Any, d: Any, lowest: Any, phase: Phase, *, whole: bool) -> None:
        """The same; rows that do not exist are zeros where not all are known to."""
        work, size, scheme = self.form.work, self.form.tiling.vector, phase.scheme
        height, width = work.plan.axes[1:]
        zero = tirx.Broadcast(tirx.const(0, work.accumulate_dtype), size)
        slot = tirx.floormod(d, i64(self.form.ring_shape[0]))
        inputs = self._registers(scheme.products)
        parts = self._registers(2)
        with T.grid(i64(width.size), i64(self.form.registers)) as (w, o):
            for k in range(scheme.products):
                h = lowest + i64(k)
                held = h if whole else tirx.max(tirx.min(h, i64(height.size - 1)), i64(0))
                if work.plan.channels_first:
                    at = (w * i64(self.form.registers) + o) * i64(size)
                    line = i64(phase.start - self.form.first_row + k)
                    x = self.frame.scratch[lanes(self._rows.at(line, at), size)]
                else:
                    x = self.frame.input_register(n, d, held, w, o * i64(size), size)
                x = x if whole else tirx.Select(tirx.EQ(h, held), x, zero)
                T.buffer_store(inputs, x, [i64(k)])

            def store(number: int, value: Any, w: Any = w, o: Any = o) -> None:
                at = (w * i64(self.form.registers) + o) * i64(size)
                place = i64(self.form.sums_before(phase) + number)
                index = self._ring.at(slot, place, at)
                T.buffer_store(self.frame.scratch, value, [lanes(index, size)])

            for number, (pair, terms) in enumerate(zip(scheme.pairs, scheme.even, strict=True)):
                T.buffer_store(parts, self._sum(inputs, terms, 1), [i64(0)])
                T.buffer_store(parts, self._sum(inputs, terms, 0), [i64(1)])
                scaled = parts[i64(1)] * self._factor(float(pair))
                store(2 * number, parts[i64(0)] + scaled)
                store(2 * number + 1, parts[i64(0)] - scaled)
            for number, terms in enumerate(scheme.alone):
                store(2 * len(scheme.pairs) + number, self._sum(inputs, terms, 0))

    def _registers(self, count: int) -> Any:
        return T.sblock_alloc_buffer((i64(count),), self._kind, scope="local")

    def _factor(self, value: float) -> Any:
        constant = tirx.const(value, self.form.work.accumulate_dtype)
        return tirx.Broadcast(constant, self.form.tiling.vector)

    def _sum(self, inputs: Any, terms: Sum, behind: int) -> Any:
        """A sum of inputs, or of those so many behind. The first factor is 1."""
        total = inputs[i64(terms[0][0] + behind)]
        for k, factor in terms[1:]:
            total = total + inputs[i64(k + behind)] * self._factor(factor)
        return total

    def _tile(self, walk: _Walk, tile: Tile) -> None:
        """The outputs of a register tile, in all phases of depth and height."""
        runs = self.form.outputs(tile.groups, tile.known)
        cells = {one: number for number, one in enumerate(itertools.chain(*runs))}
        if not cells:
            return
        for phase in self.form.phases:
            with T.grid(i64(phase.scheme.products), walk.count) as (product, number):
                self._product(walk, tile, phase, cells, (product, number))
            with T.serial(i64(0), walk.count) as number:
                self._back(phase.scheme, number, len(cells))
                with T.serial(i64(0), i64(phase.scheme.outputs)) as j:
                    self._outputs(walk, tile, phase, runs, cells, (number, j))

    def _product(
        self, walk: _Walk, tile: Tile, phase: Phase,
        cells: dict[tuple[int, int], int], which: tuple[Any, Any],
    ) -> None:  # fmt: skip
        """One product of a scheme for a row of outputs: the sums over everything else."""
        plan, size = self.form.work.plan, self.form.tiling.vector
        product, number = which
        products = self.form.products(tile.groups, tile.known)
        sums = self._registers(len(cells))
        zero = tirx.Broadcast(tirx.const(0, self.form.work.accumulate_dtype), size)
        for cell in cells.values():
            T.buffer_store(sums, zero, [i64(cell)])
        taps = Taps.of(plan.axes[0], walk.first + number)
        near = sorted({one.reach for one in products})
        if near:
            inputs, weight = self._registers(len(near)), self._registers(1)
            with T.grid(taps.count, i64(self.form.registers)) as (i, o):
                slot = tirx.floormod(taps.input_index(i), i64(self.form.ring_shape[0]))
                row = i64(self.form.sums_before(phase)) + product
                for place, reach in enumerate(near):
                    voxel = tile.first + i64(reach)
                    at = (voxel * i64(self.form.registers) + o) * i64(size)
                    x = self.frame.scratch[lanes(self._ring.at(slot, row, at), size)]
                    T.buffer_store(inputs, x, [i64(place)])
                block, lane = self.form.weight(o)
                region = self.form.region(self.frame.weights, phase)
                for tap, f in itertools.product(
                    dict.fromkeys(one.tap for one in products), range(plan.filters)
                ):
                    at = region.at(product, taps.kernel_index(i), block, i64(tap), i64(f), lane)
                    T.buffer_store(weight, self.frame.weights[lanes(at, size)], [i64(0)])
                    for one in products:
                        if one.tap == tap:
                            cell = i64(cells[one.output, f])
                            x = inputs[i64(near.index(one.reach))]
                            T.buffer_store(sums, sums[cell] + x * weight[i64(0)], [cell])
        for cell in cells.values():
            self._store_cell(number, product, i64(cell), sums[i64(cell)])

    def _cell(self, number: Any, product: Any, cell: Any) -> Any:
        index = self._cells.at(number, product, cell, i64(0))
        return self.frame.scratch[lanes(index, self.form.tiling.vector)]

    def _store_cell(self, number: Any, product: Any, cell: Any, value: Any) -> None:
        index = self._cells.at(number, product, cell, i64(0))
        T.buffer_store(self.frame.scratch, value, [lanes(index, self.form.tiling.vector)])

    def _back(self, scheme: CookScheme, number: Any, cells: int) -> None:
        """The products of each output of a row become outputs of the height, in their place."""
        pairs = len(scheme.pairs)
        held = self._registers(scheme.products)
        with T.serial(i64(0), i64(cells)) as cell:
            for i in range(pairs):
                plus, minus = (self._cell(number, i64(2 * i + sign), cell) for sign in (0, 1))
                T.buffer_store(held, plus + minus, [i64(2 * i)])
                T.buffer_store(held, plus - minus, [i64(2 * i + 1)])
            for i in range(2 * pairs, scheme.products):
                T.buffer_store(held, self._cell(number, i64(i), cell), [i64(i)])
            made = self._registers(scheme.outputs)
            for j in range(scheme.outputs):
                terms = [(held[i64(2 * i + j % 2)], pair**j) for i, pair in enumerate(scheme.pairs)]
                total = self._combined(terms)
                if j == 0 and scheme.has_zero:
                    total = total + held[i64(2 * pairs)]
                if j == scheme.outputs - 1:
                    total = total + held[i64(scheme.products - 1)]
                T.buffer_store(made, total, [i64(j)])
            for j in range(scheme.outputs):
                self._store_cell(number, i64(j), cell, made[i64(j)])

    def _combined(self, terms: Sequence[tuple[Any, Any]]) -> Any:
        total = None
        for value, factor in terms:
            term = value if factor == 1 else value * self._factor(float(factor))
            total = term if total is None else total + term
        return total

    def _outputs(
        self, walk: _Walk, tile: Tile, phase: Phase, runs: list[list[tuple[int, int]]],
        cells: dict[tuple[int, int], int], which: tuple[Any, Any],
    ) -> None:  # fmt: skip
        """One row of outputs of a register tile, where it exists."""
        height = self.form.work.plan.axes[1]
        number, j = which
        od = walk.first + number
        oh = (walk.row * i64(phase.scheme.outputs) + j) * i64(height.stride) + i64(phase.place)
        place = Place(walk.n, od, oh, Rows(walk.n, od, oh, i64(1)))
        with T.If(oh < i64(height.out)), T.Then():
            for run in runs:
                for start, count in powers(len(run), self.form.tiling.vector):
                    chosen = run[start : start + count]
                    registers = [self._cell(number, j, i64(cells[one])) for one in chosen]
                    self._finish(place, tile, (od, oh), chosen, registers)
