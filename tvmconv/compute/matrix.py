"""The matrix form, for channels first where kernel = stride: the lanes of a register are voxels.

The voxels of a sample lie side by side, channel by channel, and so do the outputs of a row. So the
layer is the product of the weights, a row for each filter and tap, with the inputs as they lie: a
weight is broadcast to registers of voxels, and no input is transposed. A register tile is some of
these x some filters with all taps along the width, whose sums are interleaved on their way out and
fill lines. Register tiles of a task follow each other inside of a panel, the weights of these
filters and a tap of depth and height, so that few places of memory are written to at a time, each
from one end to the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Frame, divide, i64
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload

__all__ = ["MOST_TWICE", "MatrixForm", "serves"]

#: Most that rows may be longer by what is computed twice: on Zen 3 rows of 12 voxels as 16 took
#: 1.12 to 1.2 times the phase form's time, of 29 as 32 0.54.
MOST_TWICE = 1.15
#: Lanes of a piece of a register below which rows within that limit rather compute some voxels
#: twice: 29 voxels as 32 took 0.95 of the time of pieces of two lanes. Beyond the limit these took
#: 0.70 to 0.91 of the phase form's time (7, 9, 13, 33 voxels); pieces of more lanes (10 to 62
#: voxels) 0.72 to 1.02 of the time of what was taken before.
_PIECE = 4


def _run(work: Workload) -> int:
    """Voxels whose outputs of one tap of depth and height lie side by side: a row or more."""
    depth, height, width = work.plan.axes
    if height.stride > 1:
        return width.size
    return width.size * height.size * (1 if depth.stride > 1 else depth.size)


def _voxels(work: Workload) -> int:
    return math.prod(axis.size for axis in work.plan.axes)


def serves(work: Workload, tiling: Tiling) -> bool:
    """Whether the form can compute a workload (with its axes joined).

    Rows fill a register, or are pieces of one.
    """
    return (
        work.plan.channels_first
        and not work.mixed_axes
        and not work.empty
        and 0 not in work.plan.input_shape[1:]
        and all(axis.is_split for axis in work.plan.axes)
        and MatrixForm(work, tiling).row >= tiling.vector
    )


@dataclass(frozen=True)
class MatrixForm:
    """The matrix form of one workload under one tiling.

    `width` registers of `vector` voxels and at most `registers` filters in a register tile, `rows`
    of these voxels in a task. Rows that are pieces of a register share registers, whose pieces
    are stored apart. Where nothing divides, the last register of a row begins before the one before
    it ends, and the last register tile computes a register again: the same numbers.
    """

    work: Workload
    tiling: Tiling

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """The filters as panels: how many panels, and the filters of each."""
        return cut(self.work.plan.filters, self.tiling.registers)

    @property
    def panels_shape(self) -> tuple[int, ...]:
        """Packed weights: block of filters, tap of depth and height, channel, filter and tap."""
        plan = self.work.plan
        taps = plan.axes[0].kernel * plan.axes[1].kernel
        lanes = self.blocks[0][1] * plan.axes[2].kernel
        return sum(number for number, _ in self.blocks), taps, plan.in_channels, lanes

    @property
    def vectors(self) -> tuple[int, int]:
        """Registers of voxels of a row and of a sample."""
        vectors = -(-self.row // self.tiling.vector)
        return vectors, _voxels(self.work) // self.row * vectors

    @property
    def row(self) -> int:
        """Voxels of a row; of a sample where rows share registers."""
        return _voxels(self.work) if self.piece else _run(self.work)

    @property
    def piece(self) -> int:
        """Voxels of a register that are in the same row, where rows share registers.

        Registers then go on in the next row, and their pieces are stored apart. 0 where rows are
        whole registers, or the last one of a row had better begin before the one before it ends.
        """
        row, vector, stride = _run(self.work), self.tiling.vector, self.work.plan.axes[2].stride
        if row % vector == 0 or vector % stride:
            return 0
        found = math.gcd(row, vector // stride)
        longer = -(-row // vector) * vector / row
        enough = _PIECE if longer <= MOST_TWICE else 2
        return found if found * stride >= enough else 0

    @property
    def pieces(self) -> int:
        """Pieces of a register of voxels, each with a place of its own for its outputs."""
        return self.tiling.vector // self.piece if self.piece else 1

    @property
    def tiles(self) -> int:
        """Register tiles of voxels of a sample."""
        return -(-self.vectors[1] // self.tiling.width)

    def voxel(self, number: Any) -> Any:
        """The first voxel of a register of the sample."""
        (vectors, count), size, row = self.vectors, self.tiling.vector, self.row
        if count % self.tiling.width:
            number = tirx.min(number, i64(count - 1))
        if row % size == 0:
            return number * i64(size)
        which, k = divide(number, vectors)
        return which * i64(row) + tirx.min(k * i64(size), i64(row - size))

    @property
    def rows_shape(self) -> tuple[int, int, int]:
        """Inputs in scratch: register tile, channel, voxel.

        An odd number of channels: one of all tiles is copied at once, and would fall on few sets of
        the cache.
        """
        voxels = self.tiling.vector * self.tiling.width
        return self.tiling.rows, self.work.plan.in_channels | 1, voxels

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("matrix", self.work.plan.kernel_shape, self.blocks)

    def first(self, block: Any) -> Any:
        """The first filter of a block."""
        longer, size = self.blocks[0]
        if len(self.blocks) == 1:
            return block * i64(size)
        # The others have a filter less.
        return block * i64(size) - tirx.max(block - i64(longer), i64(0))

    def packer(self) -> Any:
        """The function that packs the weights: what no filter has is the last one's, unused."""
        plan, (blocks, taps, channels, lanes) = self.work.plan, self.panels_shape

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            with T.grid(*map(i64, (blocks, taps, channels, lanes))) as (block, tap, c, lane):
                a, b = divide(tap, plan.axes[1].kernel)
                number, t = divide(lane, plan.axes[2].kernel)
                filter_ = tirx.min(self.first(block) + number, i64(plan.filters - 1))
                element = rounded.at(kernel[a, b, t, filter_, c], i64(0))
                place = ((block * i64(taps) + tap) * i64(channels) + c) * i64(lanes) + lane
                T.buffer_store(packed, element, [place])

        return cast.packer(self.work, math.prod(self.panels_shape), pack_kernel)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        plan, (blocks, _, channels, lanes) = self.work.plan, self.panels_shape
        depth, height, width = (axis.kernel for axis in plan.axes)
        weights, start = cast.cast_arrays(self.work, kernel, bias)
        longer, size = self.blocks[0]
        first = [block * size - max(block - longer, 0) for block in range(blocks)]
        chosen = np.minimum(np.add.outer(first, range(size)), plan.filters - 1)
        # (tap of depth and height, tap of width, block, filter of it, channel)
        flat = weights.reshape(depth * height, width, plan.filters, channels)[:, :, chosen]
        panels = flat.transpose(2, 0, 4, 3, 1).reshape(-1, depth * height, channels, lanes)
        return np.concatenate([panels.ravel(), start])

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.matrix_kernel import MatrixKernel

        chunks = -(-self.tiles // self.tiling.rows)
        size, scratch = math.prod(self.panels_shape), math.prod(self.rows_shape)
        frame = Frame(self.work, chunks, size, self.work.plan.filters, scratch)
        emit = MatrixKernel(self, frame)
        return frame.kernel(emit.task), frame
