"""The Toom-Cook form: minimal filtering of the phases in three axes, one matrix product a point.

A block of tiles is one task. Its input is copied to scratch once (widened, channels last, zeros
where there is none), transformed (sums of inputs, shared by the phases where they overlap), and
multiplied point by point: ``[tiles, in channels] x [in channels, lanes]``. The products of one
phase and one block of channels are transformed back, and leave through bias and activation to
their places in the output.

Tiles are cells of ``stride * outputs`` outputs an axis. Cells over the end are computed from zeros
and not stored. NaN and infinities of an input spread within its tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvmconv.compute import finish, streaming
from tvmconv.compute.frame import LINE_BYTES, Frame
from tvmconv.compute.lanes import Group, groups
from tvmconv.compute.point_form import PointForm
from tvmconv.compute.shuffle import part_of
from tvmconv.compute.transforms import AxisTiles, axis_tiles
from tvmconv.policies import numpy_dtype

__all__ = ["MANY_SUMS", "ToomCookForm"]

#: Sums of a plane of products that registers hold. Loops make more of them, and what follows:
#: the code is smaller, the time alike.
MANY_SUMS = 24
#: Elements between equal places of two tiles or columns beyond their size: powers of two would
#: fall on one set of the cache.
_SKEW = 16


@dataclass(frozen=True)
class ToomCookForm(PointForm):
    """The Toom-Cook form of one workload under one tiling."""

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles, AxisTiles]:
        """The three axes, cut into tiles."""
        tiling = self.tiling
        made = [
            axis_tiles(axis, m, t, number >= 3 - tiling.shared, tiling.paired)
            for number, (axis, m, t) in enumerate(
                zip(self.work.plan.axes, tiling.outputs, tiling.block, strict=True)
            )
        ]
        return made[0], made[1], made[2]

    @cached_property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes; their weights are placed by `combinations`."""
        tiling = self.tiling
        return groups(self.work, tiling.vector, tiling.registers, tiling.last, tiling.dots)

    @cached_property
    def channels(self) -> int:
        """Input channels in scratch: whole vectors."""
        vector = self.tiling.vector
        return -(-self.work.plan.in_channels // vector) * vector

    @property
    def narrows(self) -> bool:
        """Whether the last register tile of a row leaves its last tile out where that is short.

        It must not reach over the end.
        """
        width = self.axes[2]
        return width.is_short and (width.blocks == 1 or width.tiles % self.tiling.width == 0)

    @property
    def inputs_shape(self) -> tuple[int, int, int, int]:
        """The input of a block in scratch."""
        depth, height, width = (axis.inputs for axis in self.axes)
        return depth, height, width, self.channels

    @property
    def tiles_shape(self) -> tuple[int, int, int]:
        """Tiles whose inputs are transformed for a block."""
        depth, height, width = (axis.block + axis.halo for axis in self.axes)
        return depth, height, width

    @property
    def column_count(self) -> int:
        """Most transformed inputs that stand at once."""
        counts = [
            len(axis.columns) if axis.shared else max(len(c.scheme.points) for c in axis.classes)
            for axis in self.axes
        ]
        return counts[0] * counts[1] * counts[2]

    @property
    def sums_strides(self) -> tuple[int, int]:
        """Elements from one tile's sums of inputs to the next tile's, and from column to column.

        Where registers hold a line, a tile's sums lie together: a transform stores all of them, to
        few pages. Shorter registers gain nothing by it, and by measurement lose a hundredth.
        """
        if self.tiling.vector * 4 >= LINE_BYTES:
            return self.column_count * self.channels + _SKEW, self.channels
        return self.channels, math.prod(self.tiles_shape) * self.channels + _SKEW

    @property
    def _sums_size(self) -> int:
        """Elements of all sums of inputs of a block."""
        of_tile, of_column = self.sums_strides
        count = math.prod(self.tiles_shape) if of_tile > of_column else self.column_count
        return count * max(of_tile, of_column)

    @property
    def waits(self) -> bool:
        """Whether rows leave scratch piece by piece, while the next ones are multiplied."""
        return self.work.plan.channels_first and self.work.row_axis is None

    @property
    def fills_lines(self) -> bool:
        """Whether the pieces of such rows are whole lines, of one register or two each."""
        work, vector, width = self.work, self.tiling.vector, self.axes[2].axis.out
        size = numpy_dtype(work.output_dtype).itemsize
        line = LINE_BYTES // size
        few = bool(self.tiling.stretch) and self.tiling.stretch < vector
        # Two only of whole outputs: what is narrowed has no registers of its own.
        two = line == 2 * vector and not few and size >= numpy_dtype(work.accumulate_dtype).itemsize
        if not self.waits or self.tiling.across or not (two or vector == line):
            return False
        channels = part_of(work.accumulate_dtype) if few else vector
        whole = work.plan.filters % channels == 0
        return whole and width % line == 0 and self.rows_shape[3] % line == 0

    @property
    def streams(self) -> bool:
        """Whether they leave past the caches."""
        return self.tiling.stream and self.fills_lines

    @property
    def moves_rows(self) -> bool:
        """Whether rows of the input that the block before had, too, are moved in scratch.

        Blocks of parts of rows then follow each other along the height.
        """
        height, rows = self.axes[1], self.inputs_shape[1]
        shares = height.blocks > 1 and height.outputs * height.block < rows
        return self.tiling.compact and self.work.plan.channels_first and shares

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Outputs in scratch, where rows cannot leave the registers finished.

        Those of a block; of two units (`toom_cook_rows`) where they wait.
        """
        if not finish.needs_line(self.work):
            return (0,)
        depth, height, width = self.axes
        filters = self.work.plan.filters
        if self.waits:
            rows = (depth.outputs * depth.block, height.outputs * height.block)
            return (2, *rows, min(width.axis.out, width.span * width.block), filters)
        rows = (depth.span * depth.block, height.span * height.block)
        return (*rows, width.axis.out, filters)

    @property
    def masked(self) -> bool:
        """Whether one code transforms all registers of filters back, and some are stored in part.

        Lines in scratch have no lanes past the last filter.
        """
        return self.tiling.masked and not finish.needs_line(self.work)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """Blocks of lanes that are multiplied together: first filter, and lanes.

        Filters whose lanes are input channels belong to the block before them.
        """
        found: list[tuple[int, int]] = []
        for group in self.groups:
            if group.dots:
                first, lanes = found.pop()
                found.append((first, lanes + group.blocks))
                continue
            found += [(group.first + i * group.lanes, group.lanes) for i in range(group.blocks)]
        return found

    @cached_property
    def passes(self) -> list[Group]:
        """The groups that are multiplied one after the other: see `blocks`."""
        return [group for group in self.groups if not (self.masked and group.dots)]

    @property
    def lanes(self) -> int:
        """Most lanes of a block, as whole registers."""
        vector = self.tiling.vector
        return -(-max(lanes for _, lanes in self.blocks) // vector) * vector

    @property
    def bias_size(self) -> int:
        """Lanes of all filters: of whole registers where these are read."""
        size, vector = super().bias_size, self.tiling.vector
        return -(-size // vector) * vector if self.masked else size

    def product_stride(self, lanes: int) -> int:
        """Elements from one tile's products to the next tile's."""
        return max(c.points for c in self.combinations) * lanes + _SKEW

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where the columns, products and rows begin in scratch, and its end."""
        first = math.prod(self.inputs_shape)
        second = first + self._sums_size
        tiles = self.tiling.block[0] * self.tiling.block[1] * self.tiling.block[2]
        lanes = self.lanes if self.masked else max(group.lanes for group in self.groups)
        third = second + tiles * self.product_stride(lanes)
        end = third + math.prod(self.rows_shape)
        return first, second, third, end + self._pairs_sizes[-1]

    @property
    def padded_columns(self) -> int:
        """Sums of inputs that stand at once, as whole registers."""
        vector = self.tiling.vector
        return -(-self.column_count // vector) * vector

    @property
    def _pairs_sizes(self) -> tuple[int, int, int]:
        """Elements, added up, of the sizes of inputs, of what pairs add too much, and of scales."""
        if not self.tiling.paired:
            return 0, 0, 0
        tiles = math.prod(self.tiles_shape)
        sizes = math.prod(self.inputs_shape[:3]) * self.tiling.vector
        excess = sizes + tiles * self.padded_columns
        return sizes, excess, excess + tiles

    @property
    def pair_offsets(self) -> tuple[int, int, int]:
        """Where these begin in scratch."""
        sizes, excess, end = self._pairs_sizes
        start = self.offsets[-1] - end
        return start, start + sizes, start + excess

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.toom_cook_kernel import Emitter

        tiles = 1
        for axis in self.axes:
            tiles *= axis.blocks
        frame = Frame(
            self.work,
            tiles,
            self.packed_size,
            self.bias_size,
            self.offsets[-1],
            self.streams,
        )
        return streaming.kernel(frame, Emitter(self, frame).block), frame
