"""Toom-Cook on a GPU: fewer products, each of a sum of inputs and a sum of taps, in one kernel.

A block of threads makes a box of tiles of one phase, for some filters. Slice by slice of the input
channels it brings the inputs of the box to shared memory, adds them up to the sums of all tiles
there, and multiplies these with the packed sums of taps; a thread keeps eight by eight products, of
tiles that meet the same weights. At the end the products pass through shared memory once, are
added up to outputs, and leave through bias and activation.

Neither the sums of inputs nor the products ever go to the device's memory: see
docs/cuda-kernels.md for why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tvmconv.compute import point_packing, points
from tvmconv.compute.cuda.boxes import AxisBoxes, Box, boxes
from tvmconv.compute.cuda.phase_form import Block, PhaseForm
from tvmconv.compute.cuda.threads import Threads
from tvmconv.compute.points import Combination
from tvmconv.compute.transforms import AxisTiles
from tvmconv.compute.workload import Workload

__all__ = ["BANKS", "CudaToomCook"]

#: Numbers side by side in shared memory that can be read at once.
BANKS = 32


@dataclass(frozen=True)
class CudaToomCook(PhaseForm):
    """The Toom-Cook form of one workload under one tiling."""

    @property
    def folded(self) -> Workload:
        """The workload itself: no axis is folded."""
        return self.work

    @cached_property
    def axes(self) -> tuple[AxisBoxes, AxisBoxes, AxisBoxes]:
        """The three axes, cut into tiles and boxes."""
        d, h, w = (
            AxisBoxes(AxisTiles(axis, outputs, 1, shared=True), columns)
            for axis, outputs, columns in zip(
                self.work.plan.axes, self.tiling.outputs, self.tiling.columns, strict=True
            )
        )
        return d, h, w

    @property
    def whole(self) -> bool:
        """Whether a block has whole tiles of every phase; the kernel needs it."""
        return all(axis.whole for axis in self.axes)

    @cached_property
    def combinations(self) -> list[Combination]:
        """The phases by their numbers of taps in the three axes."""
        return points.combinations(self.work, [axis.tiles for axis in self.axes], [self.group])

    @cached_property
    def boxes(self) -> list[Box]:
        """A box of each of them."""
        return boxes(self.axes, self.combinations, self.tiling.voxels)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("toom-cook", self.work.plan.kernel_shape, self.tiling.outputs, self.group)

    @property
    def packed_size(self) -> int:
        """Numbers of the packed weights, without the bias."""
        return points.packed_size(self.combinations)

    def packer(self) -> Any:
        """The function that packs the weights."""
        group = self.group
        lanes = group.lane_offset + group.blocks * group.lanes
        return point_packing.packer(self.work, self.combinations, [group], lanes)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> bytes:
        """The same in NumPy."""
        group = self.group
        lanes = group.lane_offset + group.blocks * group.lanes
        packed = point_packing.pack(self.work, self.combinations, [group], lanes, kernel, bias)
        return packed.tobytes()

    @property
    def rows(self) -> int:
        """Most sums of inputs of a block, for each channel."""
        return max(box.rows * math.prod(box.weight_points) for box in self.boxes)

    @property
    def inputs(self) -> int:
        """Most voxels that a block reads in one pass."""
        return max(math.prod(box.reach) for box in self.boxes)

    @property
    def weight_points(self) -> int:
        """Most points of a pass that differ in their weights."""
        return max(math.prod(box.weight_points) for box in self.boxes)

    @property
    def row(self) -> int:
        """Sums from one channel to the next in shared memory.

        What a warp writes at once, four channels of eight tiles, is in different banks.
        """
        return _padded(self.rows, BANKS // self.tiling.depth)

    @property
    def shared_shapes(self) -> list[tuple[int, ...]]:
        """Inputs, sums and weights in shared memory, then what the products need beyond them."""
        tiling = self.tiling
        stages, depth = tiling.stages, tiling.depth
        shapes: list[tuple[int, ...]] = [
            (stages, self.inputs * depth),
            (stages, depth, self.row),
            (stages, self.weight_points * depth * tiling.block_channels),
        ]
        more = self.product_row * self.columns_together - sum(map(math.prod, shapes))
        return [*shapes, (more,)] if more > 0 else shapes

    @property
    def product_row(self) -> int:
        """Products from one column to the next in shared memory."""
        return _padded(self.rows, 4)

    @property
    def columns_together(self) -> int:
        """Columns whose products are in shared memory at a time: what fits without more of it."""
        tiling = self.tiling
        sums = tiling.depth * (self.row + self.weight_points * tiling.block_channels)
        room = tiling.stages * (self.inputs * tiling.depth + sums)
        most = tiling.block_channels // tiling.lanes * 4
        for columns in (most, most // 2):
            if columns * self.product_row <= room:
                return columns
        return most // 4

    @property
    def shared_bytes(self) -> int:
        """Shared memory of a block."""
        return self.element * sum(map(math.prod, self.shared_shapes))

    @property
    def dynamic_bytes(self) -> int:
        """What of it the launch gives: all."""
        return self.shared_bytes

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks of a sample."""
        columns = -(-self.work.plan.filters // self.tiling.block_channels)
        return math.prod(axis.slots for axis in self.axes), columns, 1

    def block(self, threads: Threads) -> Block:
        """What a block does."""
        from tvmconv.compute.cuda.toom_cook_block import Block as Boxes

        return Boxes(self, threads)


def _padded(size: int, rest: int) -> int:
    """The least number from ``size`` on that leaves ``rest`` by the banks."""
    return size + (rest - size) % BANKS
