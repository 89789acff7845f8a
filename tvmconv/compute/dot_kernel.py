"""The statements of the dot form's kernel: products of registers of channels, then their totals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import coupling, finish
from tvmconv.compute.dots import powers
from tvmconv.compute.element import storage, widen
from tvmconv.compute.frame import Frame, Region, first_position, i64, positions
from tvmconv.compute.lane_sums import TapRun
from tvmconv.compute.shuffle import Matrix, copy_transposed, lanes, totals
from tvmconv.geometry import Axis

if TYPE_CHECKING:
    from tvmconv.compute.dots import DotForm, Product, Tiles

__all__ = ["DotKernel", "Place", "Rows", "Tile"]

#: Cycles from asking memory for a line to having it.
_LATENCY = 700


@dataclass(frozen=True)
class Rows:
    """Positions of a task tile: sample, plane, the first row, their number."""

    n: Any
    q: Any
    first: Any
    count: Any


@dataclass(frozen=True)
class Place:
    """A position of a task tile: sample, plane, row, and its rows."""

    n: Any
    q: Any
    row: Any
    rows: Rows


@dataclass(frozen=True)
class Tile:
    """A register tile: its first group, a number where that is known; its groups."""

    first: Any
    groups: int
    known: int | None


@dataclass(frozen=True)
class DotKernel:
    """Emits the statements of a dot kernel."""

    form: DotForm
    frame: Frame

    @property
    def _ring(self) -> Region:
        return Region(self.frame.scratch, 0, self.form.ring_shape)

    @property
    def _weights(self) -> Region:
        return Region(self.frame.weights, 0, self.form.weights_shape)

    @property
    def _kind(self) -> str:
        return f"{self.form.work.accumulate_dtype}x{self.form.tiling.vector}"

    def tile(self, n: Any, chunk: Any, block: Any) -> None:
        """Planes and rows of one task tile."""
        depth, height, _ = self.form.work.plan.axes
        tiling = self.form.tiling
        slots = self.form.ring_shape[0] if self.form.packs else 1
        first_q = chunk * i64(tiling.planes) + i64(first_position(depth))
        end_q = tirx.min(
            first_q + i64(tiling.planes), i64(first_position(depth) + positions(depth))
        )
        first_row = block * i64(tiling.rows) + i64(first_position(height))
        end_row = tirx.min(
            first_row + i64(tiling.rows), i64(first_position(height) + positions(height))
        )
        lowest = first_row - i64((height.max_taps - 1) * height.dilation)
        with T.serial(i64(0), end_q - first_q + i64(slots - 1)) as step:
            q = first_q - i64(slots - 1) + step
            if self.form.packs:
                with T.If(tirx.all(q >= i64(0), q < i64(depth.size))), T.Then():
                    self._copy(n, q, lowest)
            with T.If(step >= i64(slots - 1)), T.Then():
                for tiles in self.form.tiles:
                    self._tiles(Rows(n, q, first_row, end_row - first_row), tiles)

    def _copy(self, n: Any, d: Any, lowest: Any) -> None:
        """The rows of a plane into the ring, widened, channels last."""
        work = self.form.work
        height, width = work.plan.axes[1:]
        slots, rows, _, channels = self.form.ring_shape
        slot, vector = tirx.floormod(d, i64(slots)), self.form.tiling.vector
        with T.serial(i64(0), i64(rows)) as r:
            h = lowest + r
            with T.If(tirx.all(h >= i64(0), h < i64(height.size))), T.Then():
                if work.plan.channels_first:
                    self._transpose(n, d, h, lambda v, c: self._ring.at(slot, r, v, c))
                    return
                with T.grid(i64(width.size), i64(channels // vector)) as (w, o):
                    value = self.frame.input_register(n, d, h, w, o * i64(vector), vector)
                    at = self._ring.at(slot, r, w, o * i64(vector))
                    T.buffer_store(self.frame.scratch, value, [lanes(at, vector)])

    def _transpose(self, n: Any, d: Any, h: Any, at: Callable[[Any, Any], Any]) -> None:
        """A row to scratch, each voxel and channel to its place ``at`` there."""
        work, wide = self.form.work, self.form.work.accumulate_dtype
        source = Matrix(
            lambda c, v: widen(self.frame.input(n, d, h, v, c), work.input_dtype, wide),
            lambda c, v, size: self.frame.input_register(n, d, h, v, c, size),
        )
        target = Matrix(
            lambda v, c, value: T.buffer_store(self.frame.scratch, value, [at(v, c)]),
            lambda v, c, size, value: T.buffer_store(
                self.frame.scratch, value, [lanes(at(v, c), size)]
            ),
        )
        vector = self.form.tiling.vector
        copy_transposed(work.plan.in_channels, work.plan.axes[2].size, vector, wide, source, target)

    def _tiles(self, rows: Rows, tiles: Tiles) -> None:
        """Register tiles: all rows of one, then all of the next.

        An input is in the first-level cache when the next row needs it again.
        """
        if not tiles.whole:
            for number in range(tiles.count):
                first = tiles.first + number * tiles.groups
                self._walk(rows, Tile(i64(first), tiles.groups, first))
            return
        with T.serial(i64(0), i64(tiles.count)) as number:
            first = i64(tiles.first) + number * i64(tiles.groups)
            self._walk(rows, Tile(first, tiles.groups, None))

    def _walk(self, rows: Rows, tile: Tile) -> None:
        depth, height, _ = self.form.work.plan.axes
        self._ask_halo(rows, tile)
        with T.serial(i64(0), rows.count) as r:
            place = Place(rows.n, rows.q, rows.first + r, rows)
            for a, b in itertools.product(range(depth.stride), range(height.stride)):
                od = place.q * i64(depth.stride) + i64(a - depth.lo)
                oh = place.row * i64(height.stride) + i64(b - height.lo)
                inside = tirx.all(
                    od >= i64(0), od < i64(depth.out), oh >= i64(0), oh < i64(height.out)
                )
                with T.If(inside), T.Then():
                    self._sums(place, tile, (a, b), (od, oh))

    def _ask_halo(self, rows: Rows, tile: Tile) -> None:
        """Bring the next tile's inputs of the rows before the first into the cache."""
        height = self.form.work.plan.axes[1]
        halo = (height.max_taps - 1) * height.dilation
        if self.form.packs or not halo:
            return
        extents = (halo, tile.groups, self.form.registers)
        with T.grid(*map(i64, extents)) as (x, w, o):
            row, voxel = rows.first - i64(halo) + x, tile.first + i64(tile.groups) + w
            self._bring(rows.n, rows.q, row, voxel, o)

    def _bring(self, n: Any, d: Any, h: Any, w: Any, o: Any) -> None:
        """Ask for a register of input, which need not exist; for the second-level cache.

        The first level holds what the rows of a tile share.
        """
        element = self.frame.input(n, d, h, w, o * i64(self.form.channels))
        address = tirx.address_of(element)
        T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 2, 1))

    def _ask(self, place: Place, tile: Tile, share: Any, o: Any) -> None:
        """Bring one share of a later row's inputs into the cache, some voxels' register ``o``.

        The next tile's where the rows end. It comes after so long as memory takes.
        """
        depth, height, _ = self.form.work.plan.axes
        products = len(self.form.products(tile.groups, None)) * self.form.work.plan.filters
        cycles = depth.kernel * height.kernel * self.form.registers * products // 2
        ahead = min(self.form.tiling.rows, -(-_LATENCY // max(1, cycles)))
        number = place.row - place.rows.first + i64(ahead)
        behind = number >= place.rows.count
        row = place.row + i64(ahead) - tirx.Select(behind, place.rows.count, i64(0))
        first = tile.first + tirx.Select(behind, i64(tile.groups), i64(0))
        each = -(-tile.groups // (depth.max_taps * height.max_taps))
        for voxel in range(each):
            w = first + share * i64(each) + i64(voxel)
            self._bring(place.n, place.q, row, w, o)

    def _sums(self, place: Place, tile: Tile, phase: tuple[int, int], out: tuple[Any, Any]) -> None:
        """The outputs of a tile in one phase of the depth and the height."""
        work = self.form.work
        runs = self.form.outputs(tile.groups, tile.known)
        cells = {one: number for number, one in enumerate(itertools.chain(*runs))}
        if not cells:
            return
        sums = T.sblock_alloc_buffer((i64(len(cells)),), self._kind, scope="local")
        zero = tirx.Broadcast(tirx.const(0, work.accumulate_dtype), self.form.tiling.vector)
        for number in cells.values():
            T.buffer_store(sums, zero, [i64(number)])
        self._products(place, tile, phase, cells, sums)
        for run in runs:
            for start, count in powers(len(run), self.form.tiling.vector):
                chosen = run[start : start + count]
                self._finish(place, tile, out, chosen, [sums[i64(cells[one])] for one in chosen])

    def _products(
        self, place: Place, tile: Tile, phase: tuple[int, int],
        cells: dict[tuple[int, int], int], sums: Any,
    ) -> None:  # fmt: skip
        """Add the products: loops over the taps of depth and height and the channels."""
        plan, size = self.form.work.plan, self.form.tiling.vector
        coupled, channels = self.form.tiling.coupled, self.form.channels
        depth, height, _ = plan.axes
        products = self.form.products(tile.groups, tile.known)
        (a0, na), (b0, nb) = (
            _taps(axis, residue).reaching(axis, q)
            for axis, residue, q in zip(plan.axes, phase, (place.q, place.row), strict=False)
        )
        near = sorted({one.reach for one in products})
        if not near:
            return
        taps = list(
            itertools.product(dict.fromkeys(one.tap for one in products), range(plan.filters))
        )
        kind = f"{storage(self.form.work.input_dtype)}x{channels}" if coupled else self._kind
        inputs = T.sblock_alloc_buffer((i64(len(near)),), kind, scope="local")
        weights = T.sblock_alloc_buffer((i64(len(taps)),), self._kind, scope="local")

        def multiply(some: Iterable[Product], filters: Iterable[int]) -> None:
            for one, filter_ in itertools.product(some, filters):
                cell = i64(cells[one.output, filter_])
                x = inputs[i64(near.index(one.reach))]
                weight = weights[i64(taps.index((one.tap, filter_)))]
                if coupled:
                    value = coupling.add_products(sums[cell], x, weight)
                else:
                    value = sums[cell] + x * weight
                T.buffer_store(sums, value, [cell])

        with T.grid(na, nb, i64(self.form.registers)) as (i, j, o):
            a, b = a0 + i, b0 + j
            d = place.q - a * i64(depth.dilation)
            h = place.row - b * i64(height.dilation)
            if phase == (0, 0) and not self.form.packs:
                self._ask(place, tile, i * nb + j, o)
            kd = i64(phase[0]) + a * i64(depth.stride)
            kh = i64(phase[1]) + b * i64(height.stride)

            def load_input(reach: int, d: Any = d, h: Any = h, o: Any = o) -> None:
                x = self._input(place, d, h, tile.first + i64(reach), o * i64(channels))
                T.buffer_store(inputs, x, [i64(near.index(reach))])

            def load_weight(number: int, kd: Any = kd, kh: Any = kh, o: Any = o) -> None:
                (tap, filter_), (block, lane) = taps[number], self.form.weight(o)
                at = self._weights.at(kd, kh, block, i64(tap), i64(filter_), lane)
                T.buffer_store(weights, self.frame.weights[lanes(at, size)], [i64(number)])

            if self.form.by_input(products):
                for number in range(len(taps)):
                    load_weight(number)
                for reach in near:
                    load_input(reach)
                    multiply((one for one in products if one.reach == reach), range(plan.filters))
            else:
                for reach in near:
                    load_input(reach)
                for number, (tap, filter_) in enumerate(taps):
                    load_weight(number)
                    multiply((one for one in products if one.tap == tap), (filter_,))

    def _input(self, place: Place, d: Any, h: Any, w: Any, c: Any) -> Any:
        """A register of channels: as they are stored, where a lane has two."""
        size = self.form.tiling.vector
        if self.form.tiling.coupled:
            return self.frame.input(place.n, d, h, w, lanes(c, self.form.channels))
        if not self.form.packs:
            return self.frame.input_register(place.n, d, h, w, c, size)
        slot = tirx.floormod(d, i64(self.form.ring_shape[0]))
        height = self.form.work.plan.axes[1]
        lowest = place.rows.first - i64((height.max_taps - 1) * height.dilation)
        return self.frame.scratch[lanes(self._ring.at(slot, h - lowest, w, c), size)]

    def _finish(
        self, place: Place, tile: Tile, out: tuple[Any, Any],
        chosen: list[tuple[int, int]], registers: list[Any],
    ) -> None:  # fmt: skip
        """Outputs that lie side by side: the totals of their sums, bias, activation."""
        work, dtype, count = self.form.work, self.form.work.accumulate_dtype, len(chosen)
        cells = T.sblock_alloc_buffer((i64(count),), dtype, scope="local")
        value = totals(self.form.tiling.vector, dtype, registers)
        index = i64(0) if count == 1 else lanes(i64(0), count)
        T.buffer_store(cells, value, [index])
        last = finish.result(work, (count,))
        stride, filters = work.plan.axes[2].stride, work.plan.filters
        (w, f), first = chosen[0], tile.first * i64(stride)
        with T.vectorized(i64(0), i64(count)) as v:
            if work.plan.channels_first or filters == 1:
                at, channel = first + i64(w) + v, i64(f)
            else:
                flat = i64(w * filters + f) + v
                at = first + tirx.floordiv(flat, i64(filters))
                channel = tirx.floormod(flat, i64(filters))
            value = last.at(cells[v] + self.frame.bias[channel], v)
            self.frame.output(value, place.n, (*out, at), channel)


def _taps(axis: Axis, residue: int) -> TapRun:
    """The taps of a phase."""
    return TapRun(0, len(range(residue, axis.kernel, axis.stride)), 1)
