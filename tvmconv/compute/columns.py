"""The column form, for few filters: products first, sums of neighbours after.

With one to a few filters a register of channels would be mostly padding. Here the lanes of a
register are *columns*, one for every tap and filter: a matrix product ``[voxels, in channels] x
[in channels, columns]`` reads the input as it lies, and each output is the sum of the products of
some voxels around it, one for each tap.

An axis whose phases all have equally many taps may be *reduced*: its columns are the phases, and
its taps are summed inside the product. Fewer numbers are written and summed afterwards, and no
column is wasted.

The products are transposed to ``[column][voxel]``, so that the sums are made by registers of
voxels: what the voxel form does, with a product in the place of an input and without weights. A
row is cut into pieces that are transposed as soon as they are multiplied: the products of a whole
row would go to the second-level cache and back. Products whose input does not exist are not
computed, and their sums are not made.

Where channels are first, a row of one channel lies in one piece: then the lanes are voxels, as in
the sums, nothing is transposed, and no axis is reduced (see `column_rows`).

Inputs of half width are widened by each register tile for itself, into a block that stays in the
first-level cache: cheaper than rows that are widened once and go to the second level and back.
Cheaper still is to widen some channels at a time, the next ones among the products of these
(`Tiling.stretch`): the units that widen are others than those that multiply.
Where a processor has no instruction for that, or a slow one, rows are widened once (`Tiling.pack`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.activations import Activation
from tvmconv.compute import cast, lanes
from tvmconv.compute.column_sums import PlaneSums
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import (
    Frame,
    Region,
    divide,
    first_position,
    i64,
    positions,
)
from tvmconv.compute.lanes import Group
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["ColumnForm", "column_axes", "columns_of", "pieces_of"]

#: Sums that stand in registers at once: enough to hide the latency of an addition.
_SUMS = 8
#: Voxels of a piece of a row, at least: a register tile or two.
_PIECE = 16


def columns_of(work: Workload, reduced: int) -> int:
    """Columns of the product where the first ``reduced`` axes are."""
    total = work.plan.filters
    return total * math.prod(column_axes(work, reduced))


def column_axes(work: Workload, reduced: int) -> tuple[int, int, int]:
    """Columns along each axis: its phases where it is reduced, else its taps."""
    found = [
        axis.stride if number < reduced else axis.kernel
        for number, axis in enumerate(work.plan.axes)
    ]
    return found[0], found[1], found[2]


def pieces_of(voxels: int, vector: int) -> list[tuple[int, int]]:
    """Cut a row into pieces of whole registers of voxels: ``(pieces, voxels each)``.

    The last one takes what is left, so that none is short.
    """
    size = max(_PIECE, vector)
    whole = max(0, voxels // size - (voxels % size > 0))
    return [piece for piece in ((whole, size), (1, voxels - whole * size)) if all(piece)]


@dataclass(frozen=True)
class ColumnForm:
    """The column form of one workload.

    `registers` of columns x `width` voxels in a register tile of the product (channels first:
    columns x registers of voxels), `rows`, `planes`, `reduced`, and whether narrow inputs are
    widened row by row (`pack`), else tile by tile, `stretch` channels at a time.
    """

    work: Workload
    tiling: Tiling

    @cached_property
    def product_work(self) -> Workload:
        """The matrix product: a layer of stride 1 whose filters are the columns."""
        axes = [
            Axis(a.size, a.max_taps, 1, a.dilation, first_position(a), positions(a))
            if number < self.tiling.reduced
            else Axis(a.size, 1, 1, 1, 0, a.size)
            for number, a in enumerate(self.work.plan.axes)
        ]
        plan = dataclasses.replace(
            self.work.plan,
            axes=(axes[0], axes[1], axes[2]),
            filters=columns_of(self.work, self.tiling.reduced),
        )
        return dataclasses.replace(
            self.work,
            plan=plan,
            output_dtype=self.work.accumulate_dtype,
            activation=Activation("linear"),
        )

    @cached_property
    def product(self) -> PhaseForm:
        """The form of the product: register tiles of voxels x columns."""
        tiling = self.tiling
        if self.work.plan.channels_first:
            return PhaseForm(self.product_work, Tiling("phase", 1, tiling.registers, 1, 1))
        pack = self.work.input_dtype != self.work.accumulate_dtype
        tile = Tiling(
            "phase", tiling.vector, tiling.registers, tiling.width, self.widened_rows, pack=pack,
            tall=tiling.tall,
        )  # fmt: skip
        return PhaseForm(self.product_work, tile)

    @cached_property
    def sums(self) -> PlaneSums:
        """The form of the sums: each column is a channel, a reduced axis has one tap a phase."""
        axes = [
            dataclasses.replace(
                a, size=first_position(a) + positions(a), kernel=a.stride, dilation=1
            )
            if number < self.tiling.reduced
            else a
            for number, a in enumerate(self.work.plan.axes)
        ]
        plan = dataclasses.replace(
            self.work.plan, axes=(axes[0], axes[1], axes[2]), in_channels=self.columns
        )
        tiling = Tiling(
            "columns", self.tiling.vector, _SUMS, 1, self.tiling.rows, planes=self.tiling.planes
        )
        return PlaneSums(dataclasses.replace(self.work, plan=plan), tiling)

    @property
    def widened_rows(self) -> int:
        """Rows of products whose input is widened at once: one where no two share an input."""
        if not self.tiling.reduced:
            return 1
        height = self.work.plan.axes[1]
        halo = (height.max_taps - 1) * height.dilation if self.tiling.reduced == 1 else 0
        return self.tiling.rows + halo

    @property
    def widens_tiles(self) -> bool:
        """Whether each register tile of the product widens its inputs."""
        return not self.tiling.pack and self.work.input_dtype != self.work.accumulate_dtype

    @property
    def widened_shape(self) -> tuple[int, ...]:
        """Widened input in scratch: the voxels of a register tile, or rows; channels.

        Some channels at a time: blocks of these, the last of which may begin before its place.
        Channels first: two rows, registers of voxels, channels, voxels.
        """
        if self.work.plan.channels_first:
            vector = self.tiling.vector
            return (2, self.voxels // vector, self.work.plan.in_channels, vector)
        if self.widens_tiles:
            if self.tiling.stretch:
                some = self.tiling.stretch
                return (-(-self.work.plan.in_channels // some), self.tiling.width, some)
            return (self.tiling.width, self.work.plan.in_channels)
        return self.product.rows_shape

    @property
    def product_axes(self) -> tuple[int, int]:
        """Planes and rows of products of a sample."""
        depth, height, _ = self.product_work.plan.axes
        return depth.out, height.out

    @property
    def groups(self) -> list[Group]:
        """The blocks of column lanes."""
        return self.product.groups

    @property
    def columns(self) -> int:
        """Columns, without those that fill the last register."""
        return columns_of(self.work, self.tiling.reduced)

    @property
    def lanes(self) -> int:
        """Columns, whole registers."""
        last = self.groups[-1]
        return last.lane_offset + last.blocks * last.lanes

    @property
    def voxels(self) -> int:
        """Voxels of a row: whole registers."""
        vector = self.tiling.vector
        return -(-self.work.plan.axes[2].size // vector) * vector

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """The pieces of a row: how many, and their voxels."""
        return pieces_of(self.work.plan.axes[2].size, self.tiling.vector)

    @property
    def products_shape(self) -> tuple[int, int]:
        """The products of a piece in scratch: voxels, whole blocks of a transpose; columns.

        None where channels are first.
        """
        if self.work.plan.channels_first:
            return (0, 0)
        vector = self.tiling.vector
        return -(-max(size for _, size in self.pieces) // vector) * vector, self.lanes

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("columns", self.work.plan.kernel_shape, self.tiling.reduced, *self.groups)

    def column(self, place: tuple[Any, Any, Any], filter_: int) -> Any:
        """The lane of a tap (of a phase, where an axis is reduced) and a filter."""
        _, height, width = column_axes(self.work, self.tiling.reduced)
        depth_place, height_place, width_place = place
        flat = (depth_place * height + height_place) * width + width_place
        return flat * self.work.plan.filters + filter_

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed columns, then the bias."""
        plan = self.work.plan
        # Each reduced axis is cut into (tap, phase); the phases go to the columns.
        parts = [
            (axis.max_taps, axis.stride) if number < self.tiling.reduced else (1, axis.kernel)
            for number, axis in enumerate(plan.axes)
        ]
        cut = kernel.reshape(*itertools.chain(*parts), plan.filters, plan.in_channels)
        columns = cut.transpose(0, 2, 4, 1, 3, 5, 6, 7)
        folded = self.product_work.plan.kernel_shape
        packed = lanes.pack(
            self.work, self.product_work, self.groups, columns.reshape(folded), None
        )
        _, start = cast.cast_arrays(self.work, kernel, bias)
        return np.concatenate([packed[: lanes.packed_size(self.product_work, self.groups)], start])

    def packer(self) -> Any:
        """The function that packs the weights."""
        work, plan = self.work, self.work.plan
        dtype = work.accumulate_dtype
        across = column_axes(work, self.tiling.reduced)
        steps = [axis.stride if n < self.tiling.reduced else 0 for n, axis in enumerate(plan.axes)]

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            taps = tuple(axis.kernel for axis in self.product_work.plan.axes)
            for group in self.groups:
                shape = (group.blocks, *taps, plan.in_channels, group.lanes)
                region = Region(packed, group.offset, shape)
                with T.grid(*map(i64, shape)) as (block, a, b, t, c, lane):
                    column = i64(group.first) + block * i64(group.lanes) + lane
                    # Lanes past the last column read a weight that exists, and hold zero.
                    last = i64(math.prod(across) * plan.filters - 1)
                    rest, filter_ = divide(tirx.min(column, last), plan.filters)
                    rest, w = divide(rest, across[2])
                    d, h = divide(rest, across[1])
                    place = [
                        one + tap * i64(step)
                        for one, tap, step in zip((d, h, w), (a, b, t), steps, strict=True)
                    ]
                    index = (*place, filter_, c)
                    element = rounded.at(kernel[index], i64(0))
                    inside = column <= last
                    element = tirx.Select(inside, element, tirx.const(0, dtype))
                    region.store(element, block, a, b, t, c, lane)

        size = lanes.packed_size(self.product_work, self.groups)
        return cast.packer(work, size, pack_kernel)

    @cached_property
    def offsets(self) -> tuple[int, int, int]:
        """Where the widened input and a piece's products begin in scratch, and its end.

        The regions of the sums come first.
        """
        first = sum(
            map(math.prod, (self.sums.ring_shape, self.sums.line_shape, self.sums.row_shape))
        )
        second = first + math.prod(self.widened_shape)
        return first, second, second + math.prod(self.products_shape)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.column_kernel import ColumnKernel
        from tvmconv.compute.column_rows import RowColumnKernel

        depth, height, _ = self.work.plan.axes
        chunks = -(-positions(depth) // self.tiling.planes)
        blocks = -(-positions(height) // self.tiling.rows)
        size = lanes.packed_size(self.product_work, self.groups)
        tiles = chunks * blocks
        frame = Frame(self.work, tiles, size, self.work.plan.filters, self.offsets[-1])
        form = RowColumnKernel if self.work.plan.channels_first else ColumnKernel
        emit = form(self.sums, frame, self)
        return frame.kernel(lambda n, index: emit.tile(n, *divide(index, blocks))), frame
