"""The pair form for channels first: the lanes of a register are voxels.

The voxels of a sample lie side by side, channel by channel, and so do the outputs of a row. So the
factors of a pair change their parts: a register of inputs is multiplied by one weight after the
other, and no input and no output is transposed. A register tile is one register of voxels x some
filters with all taps along the width, whose sums are interleaved on their way out. A panel is a tap
of depth and height and these filters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx

from tvmconv.compute import streaming
from tvmconv.compute.frame import Frame, divide, i64
from tvmconv.compute.pairs import HEAD, PairForm
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload

__all__ = ["PairVoxelForm", "begin_of", "pair_form"]


@dataclass(frozen=True)
class PairVoxelForm(PairForm):
    """The pair form of one workload, channels first, under one tiling.

    `vector` voxels and at most `registers` filters in a register tile, `rows` of these voxels in a
    task; `splits` and `stretch` as with channels last. Where nothing divides, the last voxels begin
    before the others end, and what is computed twice is stored once.
    """

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The filters as panels: how many panels, and the filters of each."""
        return cut(self.work.plan.filters, self.tiling.registers)

    @property
    def panels_shape(self) -> tuple[int, ...]:
        """Packed weights: tap of depth and height, block of filters, slot, filter and tap."""
        plan = self.work.plan
        blocks = self.blocks
        lanes = blocks[0][1] * plan.axes[2].kernel
        taps = plan.axes[0].kernel * plan.axes[1].kernel
        return taps, sum(number for number, _ in blocks), HEAD + plan.in_channels, lanes

    @property
    def voxels(self) -> int:
        """Voxels of a sample."""
        return math.prod(axis.size for axis in self.work.plan.axes)

    @property
    def runs(self) -> list[tuple[int, int]]:
        """The registers of voxels of a sample."""
        vector = self.tiling.vector
        return [(-(-self.voxels // vector), vector)]

    @property
    def run(self) -> int:
        """Voxels whose outputs of one tap of depth and height lie side by side: a row or more."""
        depth, height, width = self.work.plan.axes
        if height.stride > 1:
            return width.size
        return width.size * height.size * (1 if depth.stride > 1 else depth.size)

    @property
    def pieces(self) -> int:
        """Rows that a register of voxels may have a part of."""
        vector, run = self.tiling.vector, self.run
        if vector % run == 0 and self.voxels % vector == 0:
            return vector // run
        return (vector - 2) // run + 2

    @property
    def is_whole(self) -> bool:
        """Whether all outputs of a register of voxels are of one row, and stored once."""
        vector = self.tiling.vector
        return self.run % vector == 0 and self.voxels % vector == 0

    @property
    def fills_lines(self) -> bool:
        """Whether the registers of a channel that leave together are whole lines."""
        outputs = self.tiling.vector * self.work.plan.axes[2].stride
        return self.is_whole and streaming.fills(outputs, self.work.output_dtype)

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """Scaled inputs in scratch: register tile, slot, voxel.

        An odd number of slots: a channel of all tiles is copied at once, and would fall on few sets
        of the cache.
        """
        return self.tiling.rows, self.work.plan.in_channels | 1, self.tiling.vector

    @property
    def line_shape(self) -> tuple[int, int]:
        """Sums that pass through scratch, if any: filter and tap, voxel."""
        return (self.panels_shape[3], self.tiling.vector) if self.has_line else (0, 0)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("pairs, voxels", self.work.plan.kernel_shape, self.blocks)

    @property
    def bias_size(self) -> int:
        """Elements of the packed bias."""
        return self.work.plan.filters

    def first(self, block: Any) -> Any:
        """The first filter of a block; its expression, or all of an array."""
        longer, size = self.blocks[0]
        if len(self.blocks) == 1:
            return block * size
        # The others have a filter less.
        least = np.maximum if isinstance(block, np.ndarray) else tirx.max
        return block * size - least(block - longer, np.int64(0) if least is np.maximum else i64(0))

    def placed(self, block: Any, lane: Any) -> tuple[Any, Any]:
        """See `PairForm`. Lanes are the taps of a filter, then those of the next one."""
        width = self.work.plan.axes[2].kernel
        number, tap = divide(lane, width)
        longer, size = self.blocks[0]
        inside = tirx.any(block < i64(longer), number < i64(size - 1))
        filters = tirx.min(self.first(block) + number, i64(self.work.plan.filters - 1))
        return tap * i64(self.work.plan.filters) + filters, inside

    @property
    def placed_all(self) -> np.ndarray:
        """See `PairForm`."""
        _, blocks, _, lanes = self.panels_shape
        longer, size = self.blocks[0]
        block = np.arange(blocks, dtype=np.int64)[:, None]
        number, tap = np.divmod(np.arange(lanes), self.work.plan.axes[2].kernel)
        inside = (block < longer) | (number < size - 1)
        return np.where(inside, tap * self.work.plan.filters + self.first(block) + number, -1)

    def panel(self, tap: Any, block: Any) -> Any:
        """The number of a panel: all taps of a block, so that its outputs are close."""
        return block * self.panels_shape[0] + tap

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.pair_voxel_kernel import PairVoxelKernel

        shapes = (self.rows_shape, self.terms_shape, self.line_shape)
        scratch = sum(math.prod(shape) for shape in shapes)
        tasks = self.chunks * self.tiling.splits
        panels = math.prod(self.panels_shape)
        frame = Frame(self.work, tasks, panels, self.bias_size, scratch, self.streams)
        emit = PairVoxelKernel(self, frame)
        return streaming.kernel(
            frame, lambda n, index: emit.task(n, *divide(index, self.tiling.splits))
        ), frame


def begin_of(work: Workload, voxel: Any) -> Any:
    """Where the outputs of a voxel begin in their channel, for the first tap: kernel = stride."""
    depth, height, across = work.plan.axes
    rest, x = divide(voxel, across.size)
    z, y = divide(rest, height.size)
    row = z * i64(depth.stride * height.out) + y * i64(height.stride)
    return row * i64(across.out) + x * i64(across.stride)


def pair_form(work: Workload, tiling: Tiling) -> PairForm:
    """The pair form that serves the layout of a workload."""
    return (PairVoxelForm if work.plan.channels_first else PairForm)(work, tiling)
