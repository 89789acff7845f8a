"""The dot form, for few filters: the lanes of a register are input channels.

With one to a few filters a register of filters would be mostly padding. Here each output has a
register of sums, one for every lane of channels, and its products are those of whole registers of
channels: inputs are read as they lie, channels last, no product is wasted, and nothing but the
output is written. At the end the lanes of a sum are added up, for a register of outputs at once.

A register tile is some consecutive outputs of a row, of all phases of the width: an input serves
each of them that has a tap for it, a weight all outputs of its phase. All phases of the depth and
the height are made for a tile before the next, while their inputs are in the first-level cache.
Tiles at the ends of a row are code of their own, without the products whose input does not exist.

Rows that are not read as they lie are copied to a ring of planes, once for each task tile: channels
first, and half width where widening an input at each use would take longer.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast, coupling
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Frame, Region, divide, i64, positions
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["DotForm", "Product", "Tiles", "powers", "reaches", "row_tiles"]


@dataclass(frozen=True)
class Product:
    """A product of a register tile: its input (from the tile's first on), its tap, its output."""

    reach: int
    tap: int
    output: int


@dataclass(frozen=True)
class Tiles:
    """Register tiles of a row: ``count`` of them with ``groups`` outputs of each phase.

    Tiles that are not ``whole`` lie at an end of the row: some inputs or outputs do not exist.
    """

    first: int
    count: int
    groups: int
    whole: bool


def reaches(axis: Axis) -> list[Product]:
    """The products of ``stride`` consecutive outputs, of which the first is a multiple of it."""
    found = []
    for output in range(axis.stride):
        q, residue = divmod(output + axis.lo, axis.stride)
        for number, tap in enumerate(range(residue, axis.kernel, axis.stride)):
            found.append(Product(q - number * axis.dilation, tap, output))
    return found


def row_tiles(axis: Axis, width: int) -> list[Tiles]:
    """Cut a row into tiles of at most ``width`` outputs of each phase."""
    total = -(-axis.out // axis.stride)
    near = [one.reach for one in reaches(axis)]
    # Outputs of these groups and all of their inputs exist.
    first = max(0, -min(near))
    last = min(axis.size - max(near), axis.out // axis.stride)
    left = -(-first // width) * width
    right = -(-max(0, total - last) // width) * width
    found = []
    inside = total - left - right
    if last <= first or inside < 0:
        left, inside = 0, 0
        right = total
    place = 0
    for count, whole in ((left, False), (inside, True), (right, False)):
        for tiles, groups in cut(count, width):
            found.append(Tiles(place, tiles, groups, whole))
            place += tiles * groups
    return found


def powers(count: int, most: int) -> list[tuple[int, int]]:
    """Cut ``count`` into powers of two of at most ``most``: the first of each, how many."""
    found, first = [], 0
    while first < count:
        size = most
        while size > count - first:
            size //= 2
        found.append((first, size))
        first += size
    return found


@dataclass(frozen=True)
class DotForm:
    """The dot form of one workload.

    `vector` lanes of one channel, or of two (`coupled`), `width` outputs of each phase in a
    register tile, `rows`, `planes`, whether input rows are copied (`pack`), and channels of a block
    of packed weights (`last`).
    """

    work: Workload
    tiling: Tiling

    @property
    def channels(self) -> int:
        """Channels of a register."""
        return self.tiling.vector * (2 if self.tiling.coupled else 1)

    @property
    def registers(self) -> int:
        """Registers of channels of a voxel."""
        return self.work.plan.in_channels // self.channels

    @cached_property
    def tiles(self) -> list[Tiles]:
        """The register tiles of a row."""
        return row_tiles(self.work.plan.axes[2], self.tiling.width)

    @property
    def packs(self) -> bool:
        """Whether input rows are copied."""
        return self.tiling.pack or self.work.plan.channels_first

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """Copied input: planes of the ring, rows, voxels, channels."""
        depth, height, width = self.work.plan.axes
        if not self.packs:
            return (0, 0, 0, 0)
        return (
            (depth.max_taps - 1) * depth.dilation + 1,
            self.tiling.rows + (height.max_taps - 1) * height.dilation,
            width.size,
            self.work.plan.in_channels,
        )

    def by_input(self, products: list[Product]) -> bool:
        """Whether a register tile takes input after input, each with all of its weights.

        Where each use widens an input, by instructions that would else come in a burst before the
        products, and where its weights are fewer than its inputs, so that they stay in registers.
        """
        narrow = self.work.input_dtype != self.work.accumulate_dtype
        weights = len({one.tap for one in products}) * self.work.plan.filters
        inputs = len({one.reach for one in products})
        return narrow and not self.packs and not self.tiling.coupled and weights < inputs

    @property
    def block(self) -> int:
        """Channels that lie side by side in packed weights: a register of them, or several."""
        return self.tiling.last or self.channels

    @property
    def weights_shape(self) -> tuple[int, ...]:
        """Packed weights: depth and height tap, block of channels, width tap, filter, lane."""
        depth, height, width = (axis.kernel for axis in self.work.plan.axes)
        filters, blocks = self.work.plan.filters, self.work.plan.in_channels // self.block
        lanes = self.block // self.channels * self.tiling.vector
        return (depth, height, blocks, width, filters, lanes)

    def weight(self, register: Any) -> tuple[Any, Any]:
        """The block of packed weights that holds a register of channels, and where in it."""
        block, part = divide(register, self.block // self.channels)
        return block, part * i64(self.tiling.vector)

    def outputs(self, groups: int, first: int | None) -> list[list[tuple[int, int]]]:
        """The outputs of a tile, (place in its row, filter), in runs that lie side by side.

        Those that exist, where the tile's ``first`` group is known.
        """
        axis, filters = self.work.plan.axes[2], range(self.work.plan.filters)
        places = [
            place
            for place in range(groups * axis.stride)
            if first is None or first * axis.stride + place < axis.out
        ]
        if self.work.plan.channels_first:
            return [[(place, f) for place in places] for f in filters]
        return [list(itertools.product(places, filters))]

    def products(self, groups: int, first: int | None) -> list[Product]:
        """The width taps of a tile, for one filter.

        Those whose input and output exist, where the tile's ``first`` group is known. Products of
        one weight follow each other.
        """
        axis = self.work.plan.axes[2]
        found = [
            Product(group + one.reach, one.tap, group * axis.stride + one.output)
            for one in reaches(axis)
            for group in range(groups)
        ]
        if first is None:
            return found
        return [
            one
            for one in found
            if 0 <= first + one.reach < axis.size and first * axis.stride + one.output < axis.out
        ]

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("dots", self.work.plan.kernel_shape, self.block, self.tiling.coupled)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed kernel, then the bias."""
        depth, height, blocks, width, filters, lanes = self.weights_shape
        taps, start = cast.cast_arrays(self.work, kernel, bias)
        if self.tiling.coupled:
            taps = coupling.joined_arrays(taps)
        cut = taps.reshape(depth, height, width, filters, blocks, lanes)
        return np.concatenate([cut.transpose(0, 1, 4, 2, 3, 5).ravel(), start])

    def packer(self) -> Any:
        """The same as a function."""

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            region = Region(packed, 0, self.weights_shape)
            each = self.channels // self.tiling.vector
            ends = T.sblock_alloc_buffer((i64(each),), self.work.accumulate_dtype, scope="local")
            with T.grid(*map(i64, self.weights_shape)) as (a, b, o, t, f, lane):
                for one in range(each):
                    channel = o * i64(self.block) + lane * i64(each) + i64(one)
                    value = rounded.at(kernel[a, b, t, f, channel], i64(0))
                    T.buffer_store(ends, value, [i64(one)])
                first, *others = (ends[i64(one)] for one in range(each))
                packed_lane = coupling.joined(first, *others) if others else first
                region.store(packed_lane, a, b, o, t, f, lane)

        return cast.packer(self.work, math.prod(self.weights_shape), pack_kernel)

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.dot_kernel import DotKernel

        depth, height, _ = self.work.plan.axes
        chunks = -(-positions(depth) // self.tiling.planes)
        blocks = -(-positions(height) // self.tiling.rows)
        size = math.prod(self.weights_shape)
        scratch = math.prod(self.ring_shape)
        frame = Frame(self.work, chunks * blocks, size, self.work.plan.filters, scratch)
        emit = DotKernel(self, frame)
        return frame.kernel(lambda n, index: emit.tile(n, *divide(index, blocks))), frame
