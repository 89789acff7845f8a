"""The Toom-Cook form for few filters: the lanes of a register are tiles along the width.

With a few filters a register of filters would be mostly padding, and one of input channels has to
be added up for each product. Here a weight is broadcast to the tiles of a row. Input rows are
copied with the inputs of equal places in their tiles side by side, for each channel, a transpose
where channels are last. Sums along depth and height are made once for all products that read them;
those along the width, of inputs that are in registers already, where they are multiplied.

Where tiles of a row would leave a good part of its last register empty, several rows of tiles share
their registers: their sums lie one behind the other, and they are multiplied together.

A task is a block of tiles of depth and height with whole rows. It takes some channels at a time, so
that their inputs and sums stay in the caches; the products of all tiles wait in scratch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvmconv.compute.frame import Frame, divide
from tvmconv.compute.lanes import Group
from tvmconv.compute.point_form import PointForm
from tvmconv.compute.points import Combination
from tvmconv.compute.schemes import KINDS, Column
from tvmconv.compute.transforms import AxisTiles, PhaseClass

__all__ = ["Job", "ToomCookVoxelForm"]

#: Elements between the rows of equal places in scratch beyond their size: powers of two would fall
#: on one set of the cache.
_SKEW = 16
#: Elements of a row are a multiple.
_STEP = 4


@dataclass(frozen=True)
class Job:
    """A product along one axis: the column that it reads, the phase in its class, the point."""

    column: int
    member: int
    point: int


@dataclass(frozen=True)
class ToomCookVoxelForm(PointForm):
    """The form of one workload under one tiling."""

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles, AxisTiles]:
        """The three axes, cut into tiles."""
        made = [
            AxisTiles(axis, m, block, True)
            for axis, m, block in zip(
                self.work.plan.axes, self.tiling.outputs, self.tiling.block, strict=True
            )
        ]
        return made[0], made[1], made[2]

    @cached_property
    def groups(self) -> list[Group]:
        """All filters side by side."""
        filters = self.work.plan.filters
        return [Group(0, filters, 1, filters, 0, 0)]

    def jobs(self, axis: int, group: PhaseClass) -> list[Job]:
        """The products of a class along an axis, by the column that they read."""
        columns = self.axes[axis].needed()
        found = [
            Job(columns.index((kind, start + offset)), member, point)
            for member, start in enumerate(group.starts)
            for point, (kind, offset) in enumerate(group.scheme.points)
        ]
        return sorted(found, key=lambda job: job.column)

    def inputs(self, axis: int) -> int:
        """Inputs that a block reads along depth or height."""
        one = self.axes[axis]
        return one.outputs * (one.block - 1) + _reach(one.needed())

    @property
    def rows(self) -> int:
        """Rows of tiles, one below the other, whose tiles are lanes together."""
        return min(self.tiling.rows, self.tiling.block[1])

    @property
    def runs(self) -> int:
        """How many such groups of rows a block has; the last one may have fewer."""
        return -(-self.tiling.block[1] // self.rows)

    @property
    def vectors(self) -> int:
        """Registers of the tiles of a run."""
        tiles = (self.rows - 1) * self.pitch + self.axes[2].tiles
        return -(-tiles // self.tiling.vector)

    @property
    def row_vectors(self) -> int:
        """Registers of the tiles of one row."""
        return -(-self.axes[2].tiles // self.tiling.vector)

    @property
    def lanes(self) -> int:
        """Tiles of a run, those between its rows, and those beyond that fill the last register."""
        return self.vectors * self.tiling.vector

    @property
    def pitch(self) -> int:
        """Elements of a row of one channel and one place in a tile."""
        axis = self.axes[2]
        more = (_reach(axis.needed()) - 1) // axis.outputs
        return -(-(axis.tiles + more) // _STEP) * _STEP

    @property
    def channels(self) -> int:
        """Input channels that are taken at once."""
        channels = self.work.plan.in_channels
        return min(channels, self.tiling.stretch or channels)

    @property
    def row_size(self) -> int:
        """Elements of an input row: ``[channel][place in the tile][tile]``.

        What a register reads beyond the end is room for it.
        """
        return self._size(self.pitch)

    @property
    def place_size(self) -> int:
        """Elements of the sums of one channel and one place in a tile: ``[row][tile]``.

        Whole registers where rows share them.
        """
        if self.rows == 1:
            return self.pitch
        return -(-self.rows * self.pitch // self.tiling.vector) * self.tiling.vector

    @property
    def pieces(self) -> list[int]:
        """Elements of the pieces that the sums of a row are cut into where rows share registers."""
        found: list[int] = []
        size = self.tiling.vector
        while (rest := self.pitch - sum(found)) > 0:
            while size > rest:
                size //= 2
            found.append(size)
        return found

    def _size(self, place: int) -> int:
        return self.channels * self.axes[2].outputs * place + _SKEW + self.tiling.vector

    def products_at(self, one: Combination) -> int:
        """Where the products of a combination begin among those of a tile, in rows of lanes."""
        before = self.combinations[: self.combinations.index(one)]
        return sum(map(self.products_of, before))

    def products_of(self, one: Combination) -> int:
        """Rows of products of a combination: phases, points, filters."""
        phases = math.prod(len(group.places) for group in one.classes)
        return phases * one.points * self.work.plan.filters

    @cached_property
    def products_size(self) -> int:
        """Rows of products of a tile of depth and a run of rows."""
        return sum(map(self.products_of, self.combinations))

    @property
    def factor(self) -> int:
        """Outputs side by side in a row for each tile: filters, too, where they are last."""
        filters = 1 if self.work.plan.channels_first else self.work.plan.filters
        return self.axes[2].span * filters

    @cached_property
    def line_shape(self) -> tuple[int, int, int, int]:
        """The outputs of a tile of depth and a run of rows before they are interleaved."""
        depth, height, width = (axis.span for axis in self.axes)
        return depth, height, width * self.work.plan.filters, self.lanes

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where sums, products, outputs and the finished row begin in scratch, and its end."""
        first = self.inputs(0) * self.inputs(1) * self.row_size
        second = first + self._size(self.place_size)
        runs = self.tiling.block[0] * self.runs
        third = second + runs * (self.products_size * self.lanes + _SKEW)
        fourth = third + math.prod(self.line_shape)
        row = self.row_vectors * self.tiling.vector * self.factor
        # A run of fewer rows reads inputs of those that the block does not have.
        more = self.runs * self.rows - self.tiling.block[1]
        read = first + more * self.axes[1].outputs * self.row_size
        return first, second, third, fourth, max(fourth + row, read)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.toom_cook_voxel_kernel import ToomCookVoxelKernel

        depth, height, _ = self.axes
        frame = Frame(
            self.work,
            depth.blocks * height.blocks,
            self.packed_size,
            self.work.plan.filters,
            self.offsets[-1],
        )
        emit = ToomCookVoxelKernel(self, frame)
        return frame.kernel(lambda n, index: emit.block(n, *divide(index, height.blocks))), frame


def _reach(columns: Sequence[Column]) -> int:
    """Inputs of a tile."""
    return max(offset + KINDS[kind][-1][0] for kind, offset in columns) + 1
