"""The statements of the column form's kernel where channels are first: voxels are the lanes.

A row of one channel lies in one piece, so registers of voxels are multiplied by broadcast weights,
one column each, and the products need no transpose. The channels of a voxel lie far apart, often by
a power of two, where few of them fit into the cache at once. So a row is copied before it is
multiplied: the next one while this one is, register by register among the products, which hide the
wait for memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.column_kernel import ColumnKernel
from tvmconv.compute.frame import Region, divide, i64
from tvmconv.compute.lanes import Group
from tvmconv.compute.shuffle import lanes

__all__ = ["RowColumnKernel"]

#: Registers of a row that are asked for before they are copied: the time that memory takes. Of no
#: more channels than lie in one set of the first-level cache, where their distance is a power of 2.
_AHEAD, _MOST_CHANNELS = 48, 12
#: Steps of a pass with one copy among them, at most: so few channels give memory little time.
_MOST_STEPS = 3


@dataclass(frozen=True)
class _Place:
    """A row of products: sample, plane, row, the ring's slot for the plane, row of the ring."""

    n: Any
    d: Any
    h: Any
    slot: Any
    r: Any


@dataclass(frozen=True)
class _Copies:
    """What a pass copies: of a register of voxels, from a first channel on one every few steps."""

    register: int
    steps: int
    first: int


@dataclass(frozen=True)
class RowColumnKernel(ColumnKernel):
    """Emits the statements of a column kernel for channels first."""

    @property
    def _rows(self) -> Region:
        return Region(self.frame.scratch, self.columns.offsets[0], self.columns.widened_shape)

    def _prepare(self, n: Any, d: Any, lowest: Any) -> None:
        """Copy the first row of a plane."""
        height = self.form.work.plan.axes[1]
        # Where no row exists, any other: its products are not made.
        first = tirx.min(tirx.max(lowest, i64(0)), i64(height.size - 1))
        _, vectors, channels, _ = self.columns.widened_shape
        with T.sblock("first"):
            depth = self.form.work.plan.axes[0]
            plane = T.axis.spatial(i64(depth.size), d)
            row = T.axis.spatial(i64(height.size), first)
            self.frame.touch()
            with T.serial(i64(0), i64(vectors * channels)) as number:
                self._copy(n, plane, row, number)

    def _copy(self, n: Any, d: Any, h: Any, number: Any) -> None:
        """A register of a row; the channels follow each other, each from its first voxel on.

        Others are asked for: of channels that follow, or of the first ones of the row behind, which
        may not exist.
        """
        _, vectors, channels, size = self.columns.widened_shape
        channel, vector = divide(number, vectors)
        ahead = channel + i64(min(-(-_AHEAD // vectors), _MOST_CHANNELS, channels))
        behind = ahead >= i64(channels)
        row = tirx.Select(behind, h + i64(1), h)
        other = tirx.Select(behind, ahead - i64(channels), ahead)
        # The last voxel too: registers need not begin with a line.
        for voxel in (0, size - 1):
            element = self.frame.input(n, d, row, self._voxel(vector) + i64(voxel), other)
            address = tirx.address_of(element)
            T.evaluate(tirx.call_intrin("void", "tirx.prefetch", address, 0, 3, 1))
        value = self.frame.input_register(n, d, h, self._voxel(vector), channel, size)
        place = self._rows.at(tirx.floormod(h, i64(2)), vector, channel, i64(0))
        T.buffer_store(self.frame.scratch, value, [lanes(place, size)])

    def _voxel(self, vector: Any) -> Any:
        """The first voxel of a register: the last ones end with the row."""
        size, width = self.form.tiling.vector, self.form.work.plan.axes[2].size
        first = vector * i64(size)
        return first if width % size == 0 else tirx.min(first, i64(width - size))

    def _copy_row(self, n: Any, d: Any, h: Any, slot: Any, r: Any, count: int) -> None:
        """A row of products, and the next row's copy."""
        del slot, count
        depth, height, _ = self.form.work.plan.axes
        with T.sblock("products"):
            plane = T.axis.spatial(i64(depth.size), d)
            row = T.axis.spatial(i64(height.size), h)
            number = T.axis.spatial(i64(self.form.ring_shape[1]), r)
            self.frame.touch()
            slot = tirx.floormod(plane, i64(self.form.ring_shape[0]))
            place = _Place(n, plane, row, slot, number)
            group = self.columns.tiling.width
            whole, rest = divmod(self.columns.widened_shape[1], group)
            for start, tiles, vectors in ((0, whole, group), (whole * group, 1, rest)):
                if tiles * vectors:
                    with T.serial(i64(0), i64(tiles)) as tile:
                        self._tile(place, i64(start) + tile * i64(vectors), vectors)

    def _tile(self, place: _Place, first: Any, vectors: int) -> None:
        """All columns of some registers of voxels; the first passes copy the next row's."""
        groups = self.columns.groups
        passes = sum(group.blocks for group in groups)
        channels = self.columns.widened_shape[2]
        most = max(1, min(_MOST_STEPS, passes // vectors))
        steps = next(n for n in range(most, 0, -1) if channels % n == 0)
        done = 0
        for group in groups:
            copying = max(0, min(group.blocks, vectors * steps - done))
            for block in range(copying):
                number = done + block
                copies = [
                    _Copies(k // steps, steps, k % steps * (channels // steps))
                    for k in range(number, vectors * steps, passes)
                ]
                self._pass(place, group, i64(block), first, vectors, copies)
            if group.blocks > copying:
                with T.serial(i64(copying), i64(group.blocks)) as block:
                    self._pass(place, group, block, first, vectors, [])
            done += group.blocks

    def _pass(
        self,
        place: _Place,
        group: Group,
        block: Any,
        first: Any,
        vectors: int,
        copies: list[_Copies],
    ) -> None:
        """The products of one block of columns, into the ring."""
        columns, size = self.columns, self.columns.tiling.vector
        height = self.form.work.plan.axes[1]
        _, _, channels, _ = columns.widened_shape
        shape = (group.blocks, channels, group.lanes)
        weights = Region(self.frame.weights, group.offset, shape)
        sums = T.sblock_alloc_buffer((i64(group.lanes * vectors),), self._kind, scope="local")
        inputs = T.sblock_alloc_buffer((i64(vectors),), self._kind, scope="local")
        cells = [(j, m) for j in range(group.lanes) for m in range(vectors)]
        zero = tirx.Broadcast(tirx.const(0, self._dtype), size)
        for j, m in cells:
            T.buffer_store(sums, zero, [i64(j * vectors + m)])
        following = tirx.min(place.h + i64(1), i64(height.size - 1))
        steps = max((one.steps for one in copies), default=1)
        with T.serial(i64(0), i64(channels // steps)) as number:
            for one in copies:
                register = first + i64(one.register)
                channel = i64(one.first) + number
                self._copy(place.n, place.d, following, register * i64(channels) + channel)
            for step in range(steps):
                c = number * i64(steps) + i64(step)
                for m in range(vectors):
                    at = self._rows.at(tirx.floormod(place.h, i64(2)), first + i64(m), c, i64(0))
                    T.buffer_store(inputs, self.frame.scratch[lanes(at, size)], [i64(m)])
                for j in range(group.lanes):
                    weight = tirx.Broadcast(weights.load(block, c, i64(j)), size)
                    for m in range(vectors):
                        cell = i64(j * vectors + m)
                        T.buffer_store(sums, sums[cell] + inputs[i64(m)] * weight, [cell])
        for j, m in cells:
            column = i64(group.first + j) + block * i64(group.lanes)
            voxel = i64(self.form.origin) + self._voxel(first + i64(m))
            at = self._ring.at(place.slot, place.r, column, voxel)
            T.buffer_store(self.frame.scratch, sums[i64(j * vectors + m)], [lanes(at, size)])
