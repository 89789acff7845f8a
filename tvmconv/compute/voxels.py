"""The voxel form, for few filters.

The lanes of a register are voxels along the width, not channels.

With one to a few filters a register of channels would be mostly padding. Here every weight is
broadcast to a register of voxels, and all phases and filters of the same input voxels are summed at
once: each input register loaded serves many products, no product is wasted, and little but the
output is written (a matrix product with a column for each tap and filter would write taps * filters
numbers a voxel, and add them up again).

Input rows are packed as ``[in channel][voxel]``, so few of them at a time that they stay in the
first-level cache, and multiplied with all of their taps before the next ones are packed. The sums
of all outputs that have inputs to come wait in a ring of planes: fewer numbers than the channels of
the inputs.

Where channels are last this is a transpose. With registers enough the voxels of a register tile are
packed at a time, with those beside them that their taps reach, and the last of their products pack
the next ones: a channel takes the place of one that was multiplied, and shuffles wait behind
products. Where channels are first, or taps reach far, a row is packed at a time, perhaps some of
its channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Frame, divide, i64, positions
from tvmconv.compute.lane_sums import LaneSums, Sum, TapRun, apart, products
from tvmconv.compute.shuffle import part_of
from tvmconv.compute.tiling import cut
from tvmconv.compute.voxel_kernel import VoxelKernel

__all__ = ["Pass", "VoxelForm"]

#: Voxels that two register tiles may share where each is packed for itself: one by one.
_SHARED = 4
#: Parts of 128 bits that a register has where it is packed by parts.
_PARTS = 4


@dataclass(frozen=True)
class Pass:
    """Products of an input row that share loops: some sums that stay in registers.

    Attributes
    ----------
    run : TapRun
        Its depth taps: the loop outside.
    sums : tuple of (int, Sum)
        Height tap and sum of each register of sums.
    products : tuple of (int, int)
        Width tap and number of the sum of each product of one input channel.
    offset : int
        Where its packed weights begin: ``[depth tap][in channel][product]``.
    """

    run: TapRun
    sums: tuple[tuple[int, Sum], ...]
    products: tuple[tuple[int, int], ...]
    offset: int


@dataclass(frozen=True)
class VoxelForm(LaneSums):
    """The voxel form of one workload.

    `width` registers of voxels, `registers` sums a pass, `stretch` channels of a row that are
    packed at once (0: all), `rows`, `planes`.
    """

    @property
    def passes(self) -> list[Pass]:
        """In the order of the packed weights."""
        depth, height, width = self.work.plan.axes
        found, offset = [], 0
        for run in TapRun.of(depth):
            sums = [
                (b, one)
                for phase in range(run.residues)
                for b in range(height.max_taps)
                for one in self.all_sums
                if one[0][0] == phase
                and one[0][1] + b * height.stride < height.kernel
                and one[0][2] < width.kernel
            ]
            start = 0
            for count, size in cut(len(sums), self.tiling.registers):
                for _ in range(count):
                    chosen = sums[start : start + size]
                    start += size
                    some = tuple(self._products(chosen))
                    found.append(Pass(run, tuple(chosen), some, offset))
                    offset += run.count * self.work.plan.in_channels * len(some)
        return found

    def _products(self, sums: list[tuple[int, Sum]]) -> list[tuple[int, int]]:
        """Width taps and sums; products of one input register follow each other."""
        width = self.work.plan.axes[2]
        found = [
            (t, number)
            for t in range(width.max_taps)
            for number, (_, one) in enumerate(sums)
            if one[0][2] + t * width.stride < width.kernel
        ]
        return sorted(found, key=lambda one: -self.reach(one[0], sums[one[1]][1][0][2]))

    def kernel_index(self, one: Pass, a: int, product: tuple[int, int]) -> tuple[int, ...]:
        """The entry of the kernel for a product at depth tap ``a``, without its in-channel."""
        t, number = product
        b, (residues, filter_) = one.sums[number]
        strides = [axis.stride for axis in self.work.plan.axes]
        taps = zip(residues, (a, b, t), strides, strict=True)
        return (*(r + k * s for r, k, s in taps), filter_)

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """A row cut into groups of registers: ``(first register, groups, registers each)``."""
        found, start = [], 0
        for count, size in cut(self.vectors, self.tiling.width):
            found.append((start, count, size))
            start += count * size
        return found

    @property
    def beside(self) -> tuple[int, int]:
        """Voxels before and behind those of a register tile that its taps reach."""
        before, after = self.border
        return before, max(0, after - self.vectors * self.tiling.vector)

    @property
    def blocks(self) -> int:
        """Channels are packed in so many blocks, where they are equal; else 0."""
        channels = self.work.plan.in_channels
        most = min(channels, self.tiling.stretch or channels)
        return 0 if channels % most else channels // most

    @property
    def by_groups(self) -> bool:
        """Whether a row's groups are packed one by one, among the products of those before.

        Where channels are last, all groups but the last have all voxels, and a few channels of each
        voxel are loaded to their place in a register; of 512 bits, since where these are, there are
        registers left.
        """
        start, count, size = self.groups[-1]
        last = (start + (count - 1) * size) * self.tiling.vector
        if self.work.plan.channels_first or not 0 < last <= self.work.plan.axes[2].size:
            return False
        plain = self.work.input_dtype == self.work.accumulate_dtype
        part = part_of(self.work.accumulate_dtype)
        whole = self.blocks and self.work.plan.in_channels // self.blocks % part == 0
        wide = self.tiling.vector == _PARTS * part
        return bool(plain and whole and wide and sum(self.beside) <= _SHARED)

    @property
    def by_rows(self) -> bool:
        """Whether channels of a row are packed among the last products of those before.

        Where channels are first, so that a register is copied as it lies; of 512 bits, since where
        these are, there are registers left.
        """
        wide = self.tiling.vector == _PARTS * part_of(self.work.accumulate_dtype)
        return self.work.plan.channels_first and wide and self.blocks > 0

    @property
    def together(self) -> int:
        """Rows that are packed together, channels first."""
        return self.tiling.block[1] if self.work.plan.channels_first else 1

    @property
    def packed_shape(self) -> tuple[int, int]:
        """Packed input: channels, voxels."""
        channels, vector = self.work.plan.in_channels, self.tiling.vector
        channels = min(channels, self.tiling.stretch or channels)
        if self.by_groups:
            # All of it is read: in one piece no places meet in the same set of the cache.
            voxels = max(size for *_, size in self.groups) * vector + self.beside[1]
            return channels, self.origin + -(-voxels // vector) * vector
        return channels, apart(self.origin + self.border[1], vector)

    @property
    def halo(self) -> int:
        """Rows of sums before and behind those of a task tile.

        A pass serves several height taps, for some of which another task does this work.
        """
        height = self.work.plan.axes[1]
        return (height.max_taps - 1) * height.dilation

    @property
    def line_shape(self) -> tuple[int, int, int, int]:
        """The ring of sums: planes, rows, phases x filters, voxels."""
        depth = self.work.plan.axes[0]
        vector = self.tiling.vector
        return (
            (depth.max_taps - 1) * depth.dilation + 1,
            self.tiling.rows + 2 * self.halo,
            len(self.all_sums),
            apart(self.vectors * vector, vector),
        )

    @property
    def row_shape(self) -> tuple[int]:
        """The outputs of a row and one phase of depth and height, interleaved, before the crop."""
        return (self.vectors * self.tiling.vector * self.factor,)

    @property
    def scratch_size(self) -> int:
        """Elements of scratch."""
        packed = self.together * math.prod(self.packed_shape)
        return packed + sum(map(math.prod, (self.line_shape, self.row_shape)))

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("voxel", self.work.plan.kernel_shape, self.tiling.registers)

    def packer(self) -> Any:
        """The function that packs the weights."""
        work = self.work

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            for one, a, start in self.stretches():
                with T.serial(i64(0), i64(work.plan.in_channels)) as c:
                    for j, product in enumerate(one.products):
                        index = (*map(i64, self.kernel_index(one, a, product)), c)
                        element = rounded.at(kernel[index], i64(0))
                        place = i64(start + j) + c * i64(len(one.products))
                        T.buffer_store(packed, element, [place])

        return cast.packer(work, products(work) * work.plan.in_channels, pack_kernel)

    def stretches(self) -> Iterator[tuple[Pass, int, int]]:
        """Each pass with each of its depth taps, and where their weights begin."""
        for one in self.passes:
            for number in range(one.run.count):
                size = self.work.plan.in_channels * len(one.products)
                yield one, one.run.first + number, one.offset + number * size

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        taps, start = cast.cast_arrays(self.work, kernel, bias)
        pieces = [
            np.stack([taps[self.kernel_index(one, a, each)] for each in one.products], axis=-1)
            for one, a, _ in self.stretches()
        ]
        return np.concatenate([*(piece.ravel() for piece in pieces), start])

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        depth, height, _ = self.work.plan.axes
        chunks = -(-positions(depth) // self.tiling.planes)
        blocks = -(-positions(height) // self.tiling.rows)
        size = products(self.work) * self.work.plan.in_channels
        frame = Frame(self.work, chunks * blocks, size, self.work.plan.filters, self.scratch_size)
        emit = VoxelKernel(self, frame)
        return frame.kernel(lambda n, index: emit.tile(n, *divide(index, blocks))), frame
