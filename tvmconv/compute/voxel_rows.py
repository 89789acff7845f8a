"""Input rows of the voxel form: packed as ``[channel][voxel]``, and asked for before that."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import finish
from tvmconv.compute.element import widen
from tvmconv.compute.frame import LINE_BYTES, Region, divide, i64
from tvmconv.compute.row_writer import RowWriter
from tvmconv.compute.shuffle import Matrix, copy_transposed, lanes, part_of, transpose_part
from tvmconv.policies import numpy_dtype

if TYPE_CHECKING:
    from tvmconv.compute.voxels import VoxelForm

__all__ = ["Part", "Tile", "VoxelRows"]

#: Bytes of an input that is asked for ahead: smaller ones stay in the second-level cache.
_FAR = 1 << 20
#: Bytes of a group of voxels up to which it is asked for by the first-level cache.
_NEAR = 1 << 12


@dataclass(frozen=True)
class Tile:
    """A task tile: its sample, and the first and behind the last of its planes and rows."""

    n: Any
    planes: tuple[Any, Any]
    rows: tuple[Any, Any]
    lowest: Any


@dataclass(frozen=True)
class Part:
    """What is packed at once: from a voxel on; its groups of registers; channels.

    ``groups`` are (first register, groups, registers each), as in the form; ``row`` is the number
    among the rows that are packed together.
    """

    voxel: Any
    groups: list[tuple[int, int, int]]
    channels: tuple[Any, int]
    row: Any = None


@dataclass(frozen=True)
class VoxelRows(RowWriter):
    """Emits the statements that pack rows."""

    form: VoxelForm

    @property
    def _packed(self) -> Region:
        """Packed channels, of all rows that are packed together."""
        channels, voxels = self.form.packed_shape
        return Region(self.frame.scratch, 0, (self.form.together * channels, voxels))

    def _zero(self, channels: int, start: int, count: int) -> None:
        """Packed voxels that do not exist."""
        zero = tirx.const(0, self._dtype)
        with T.grid(i64(channels), i64(count)) as (c, v):
            self._packed.store(zero, c, i64(start) + v)

    def _element(self, place: tuple[Any, Any, Any], w: Any, c: Any) -> Any:
        """An element of the input, widened."""
        return widen(self.frame.input(*place, w, c), self.form.work.input_dtype, self._dtype)

    def _pack(self, place: tuple[Any, Any, Any], part: Part) -> None:
        """Some channels of a row: ``[channel][voxel]``."""
        count = min(self.form.border[1], self.form.work.plan.axes[2].size)
        if not self.form.work.plan.channels_first:
            self._transpose(place, part, count)
            return
        first, channels = part.channels
        for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
            with (
                T.grid(i64(channels), i64(vectors)) as (c, o),
                T.vectorized(i64(0), i64(size)) as v,
            ):
                voxel = i64(start) + o * i64(size) + v
                value = self._element(place, voxel, first + c)
                self._packed.store(value, c, i64(self.form.origin) + voxel)

    def _pack_rows(
        self, place: tuple[Any, Any, Any], count: Any, channels: tuple[Any, int]
    ) -> None:
        """Some channels of some rows from a place on, ``[row][channel][voxel]``.

        Rows follow each other, channels may be pages apart.
        """
        n, d, h = place
        first, number = channels
        voxels = min(self.form.border[1], self.form.work.plan.axes[2].size)
        with T.grid(i64(number), count) as (c, row):
            for start, vectors, size in finish.chunks(voxels, self.form.tiling.vector):
                with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(size)) as v:
                    voxel = i64(start) + o * i64(size) + v
                    value = self._element((n, d, h + row), voxel, first + c)
                    to = row * i64(self.form.packed_shape[0]) + c
                    self._packed.store(value, to, i64(self.form.origin) + voxel)

    def _pack_group(self, place: tuple[Any, Any, Any], part: Part, left: int, last: Any) -> None:
        """The voxels of a group; ``left`` exist from the ``last`` one on."""
        _, channels = part.channels
        ((_, _, vectors),) = part.groups
        count, origin = vectors * self.form.tiling.vector, self.form.origin
        if left >= count:
            self._transpose(place, part, count)
            return
        with T.If(last):
            with T.Then():
                self._transpose(place, part, left)
                self._zero(channels, origin + left, count - left)
            with T.Else():
                self._transpose(place, part, count)

    def _beside(self, place: tuple[Any, Any, Any], part: Part, *, before: bool = True) -> None:
        """The voxels beside a group that its taps reach; those ``before`` it, too."""
        first, channels = part.channels
        ((_, _, vectors),) = part.groups
        count, origin = vectors * self.form.tiling.vector, self.form.origin
        near, far = self.form.beside
        for voxel in (*range(-near if before else 0, 0), *range(count, count + far)):
            w = part.voxel + i64(voxel)
            with T.If(tirx.all(w >= i64(0), w < i64(self.form.work.plan.axes[2].size))):
                with T.Then(), T.serial(i64(0), i64(channels)) as c:
                    value = self._element(place, w, first + c)
                    self._packed.store(value, c, i64(origin + voxel))
                with T.Else():
                    self._zero(channels, origin + voxel, 1)

    def _replace_row(self, place: tuple[Any, Any, Any], part: Part, c: Any) -> None:
        """Pack channel ``c`` of a part over that of the part before it."""
        count = min(self.form.border[1], self.form.work.plan.axes[2].size)
        for start, vectors, size in finish.chunks(count, self.form.tiling.vector):
            with T.serial(i64(0), i64(vectors)) as o, T.vectorized(i64(0), i64(size)) as v:
                voxel = i64(start) + o * i64(size) + v
                value = self._element(place, voxel, part.channels[0] + c)
                self._packed.store(value, c, i64(self.form.origin) + voxel)

    def _replace(self, place: tuple[Any, Any, Any], part: Part, c: Any) -> None:
        """Pack a group over the one before it: 128 bits of channels, from ``c`` on."""
        ((_, _, vectors),) = part.groups
        size, origin = self.form.tiling.vector, self.form.origin
        if self.form.blocks == 1:
            # The last voxels of the group before are beside this one.
            for lane, voxel in itertools.product(
                range(part_of(self._dtype)), range(-self.form.beside[0], 0)
            ):
                value = self._packed.load(c + i64(lane), i64(origin + voxel + vectors * size))
                self._packed.store(value, c + i64(lane), i64(origin + voxel))
        for m in range(vectors):
            first = part.voxel + i64(m * size)

            def load(i: int, count: int, first: Any = first) -> Any:
                channel = part.channels[0] + c
                return self.frame.input_register(*place, first + i64(i), channel, count)

            def store(j: int, value: Any, m: int = m) -> None:
                at = self._packed.at(c + i64(j), i64(origin + m * size))
                T.buffer_store(self.frame.scratch, value, [lanes(at, size)])

            transpose_part(size, self._kind, load, store)

    def _transpose(self, place: tuple[Any, Any, Any], part: Part, count: int) -> None:
        """The first ``count`` voxels of a part."""
        (first, channels), origin, work = part.channels, self.form.origin, self.form.work
        source = Matrix(
            lambda v, c: self._element(place, part.voxel + v, first + c),
            lambda v, c, size: self.frame.input_register(*place, part.voxel + v, first + c, size),
            parts=work.input_dtype == self._dtype,
        )
        target = Matrix(
            lambda c, v, value: self._packed.store(value, c, i64(origin) + v),
            lambda c, v, size, value: T.buffer_store(
                self.frame.scratch,
                value,
                [lanes(self._packed.at(c, i64(origin) + v), size)],
            ),
        )
        # bfloat16 is widened element by element: its shifts do not take registers of rows.
        vector = 1 if work.input_dtype == "bfloat16" else self.form.tiling.vector
        copy_transposed(count, channels, vector, self._dtype, source, target, along=True)

    def _left(self, kind: tuple[int, int, int]) -> int:
        """The voxels from the last group of a kind on that exist."""
        start, groups, vectors = kind
        before = (start + (groups - 1) * vectors) * self.form.tiling.vector
        return self.form.work.plan.axes[2].size - before

    def _part(self, kind: tuple[int, int, int], group: Any, channels: tuple[Any, int]) -> Part:
        start, _, vectors = kind
        size = self.form.tiling.vector
        voxel = i64(start * size) + group * i64(vectors * size)
        return Part(voxel, [(0, 1, vectors)], channels)

    def _channels(self) -> Iterator[tuple[Any, int]]:
        """Loops over the channels that are packed at once: the first, how many."""
        channels, most = self.form.work.plan.in_channels, self.form.packed_shape[0]
        whole, rest = divmod(channels, most)
        for start, blocks, count in ((0, whole, most), (whole * most, 1, rest)):
            if blocks * count:
                with T.serial(i64(0), i64(blocks)) as block:
                    yield i64(start) + block * i64(count), count

    def _row_ahead(
        self, tile: Tile, place: tuple[Any, Any, Any], channels: tuple[Any, int]
    ) -> tuple[Any, ...]:
        """Sample, plane, row, voxel and channel of what follows some channels of a row."""
        first, count = channels
        n, d, h = place
        depth, height, _ = self.form.work.plan.axes
        behind = first + i64(2 * count) > i64(self.form.work.plan.in_channels)
        last = tirx.all(behind, h + i64(1) >= tirx.min(tile.rows[1], i64(height.size)))
        row = tirx.Select(last, tirx.max(tile.lowest, i64(0)), tirx.Select(behind, h + i64(1), h))
        plane = tirx.min(tirx.Select(last, d + i64(1), d), i64(depth.size - 1))
        return n, plane, row, i64(0), tirx.Select(behind, i64(0), first + i64(count))

    def _rows_ahead(
        self, tile: Tile, place: tuple[Any, Any, Any], channels: tuple[Any, int], end: Any, row: Any
    ) -> tuple[Any, ...]:
        """The same of what follows some channels of some rows, and the number of one of these."""
        first, count = channels
        n, d, h = place
        depth, height, _ = self.form.work.plan.axes
        behind = first + i64(2 * count) > i64(self.form.work.plan.in_channels)
        last = tirx.all(behind, end >= tirx.min(tile.rows[1], i64(height.size)))
        below = tirx.Select(last, tirx.max(tile.lowest, i64(0)), tirx.Select(behind, end, h))
        plane = tirx.min(tirx.Select(last, d + i64(1), d), i64(depth.size - 1))
        return n, plane, below, i64(0), tirx.Select(behind, i64(0), first + i64(count)), row

    def _ahead(
        self, tile: Tile, place: tuple[Any, Any, Any], voxel: Any, start: Any
    ) -> tuple[Any, ...]:
        """The same of a group from ``voxel`` on: behind a row the next one begins."""
        n, d, h = place
        depth, height, width = self.form.work.plan.axes
        over = voxel >= i64(width.size)
        last = tirx.all(over, h + i64(1) >= tirx.min(tile.rows[1], i64(height.size)))
        row = tirx.Select(last, tirx.max(tile.lowest, i64(0)), h)
        plane = tirx.min(tirx.Select(last, d + i64(1), d), i64(depth.size - 1))
        return n, plane, row, tirx.Select(last, voxel - i64(width.size), voxel), start

    def _ask(
        self, ahead: tuple[Any, ...], count: int, c: Any, voxel: Any, vectors: int,
        tap: tuple[Any, int],
    ) -> None:  # fmt: skip
        """Bring a share of the inputs that are packed later into the second-level cache."""
        plan, size = self.form.work.plan, self.form.tiling.vector
        item = numpy_dtype(self.form.work.input_dtype).itemsize
        if math.prod(plan.input_shape[1:]) * item <= _FAR:
            return
        n, plane, row, first, start, *which = ahead
        channel = start + c
        if which:
            # Rows that are packed together follow each other: a part of the channels of each.
            together = self.form.together
            step, below = divide(which[0] * i64(count) + c, together)
            channel, row = start + step, tirx.min(row + below, i64(plan.axes[1].size - 1))
        voxel = first if self.form.by_groups else first + voxel
        line = LINE_BYTES // item
        near = self.form.by_groups and count * vectors * size * item <= _NEAR
        lines = -(-vectors * size // line)
        each = -(-lines // tap[1])
        for step in range(each):
            number = tap[0] * i64(each) + i64(step)
            if plan.channels_first:
                # Where lines do not begin with a row, the one before was asked for with the row
                # before.
                behind = voxel + (number + i64(1)) * i64(line)
                element = self.frame.x[n, channel, plane, row, behind - i64(1)]
            elif count % line or count == plan.in_channels:
                # The voxels of a group lie in one piece; beyond a row the next one begins.
                at = c * i64(vectors * size) + number * i64(line)
                element = self.frame.x[n, plane, row, voxel, start + at]
            else:
                w, part = divide(c * i64(lines) + number, count // line)
                element = self.frame.x[n, plane, row, voxel + w, start + part * i64(line)]
            address = tirx.address_of(element)
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3 if near else 2, 1))
