"""The voxel form, for few filters.

The lanes of a register are voxels along the width, not channels.

With one to a few filters a register of channels would be mostly padding. Here every weight is
broadcast to a register of voxels, and all phases and filters of the same input voxels are summed at
once: each input register loaded serves many products, no product is wasted, and nothing but the
output is written (a matrix product with a column for each tap and filter would write taps * filters
numbers a voxel, and add them up again).

Input rows are packed as ``[in channel][voxel]``, a transpose where channels are last. A task tile
walks down the depth with a ring of as many planes as the kernel has depth taps, so a plane is
packed once for it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import (
    Frame,
    Region,
    divide,
    i64,
    positions,
)
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.voxel_kernel import VoxelKernel
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["Bundle", "TapRun", "VoxelForm", "products"]


def products(work: Workload) -> int:
    """Products of one input channel and one position.

    Multiply-adds in the innermost loops, unrolled.
    """
    total = work.plan.filters
    for axis in work.plan.axes:
        total *= axis.kernel
    return total


#: A sum: its phase and its filter.
Sum = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class TapRun:
    """Consecutive taps of one axis that the same phases have: residues below ``residues``."""

    first: int
    count: int
    residues: int

    @classmethod
    def of(cls, axis: Axis) -> list[TapRun]:
        """All taps of an axis in at most two runs."""
        full, rest = divmod(axis.kernel, axis.stride)
        runs = [cls(0, full, axis.stride), cls(full, 1, rest)]
        return [run for run in runs if run.count and run.residues]

    def reaching(self, axis: Axis, q: Any) -> tuple[Any, Any]:
        """The first tap of the run whose input exists at position ``q``, and the number of them."""
        dilation = i64(axis.dilation)
        lowest = tirx.floordiv(q - i64(axis.size - axis.dilation), dilation)
        first = tirx.max(lowest, i64(self.first))
        last = tirx.min(tirx.floordiv(q, dilation) + i64(1), i64(self.first + self.count))
        return first, tirx.max(last - first, i64(0))


@dataclass(frozen=True)
class Bundle:
    """Products that share loops: a run of depth taps, one of height taps, one pass over the sums.

    Attributes
    ----------
    products : tuple of (int, Sum)
        Width tap and sum of each product of one input channel.
    offset : int
        Where its packed weights begin: ``[depth tap][height tap][in channel][product]``.
    """

    depth: TapRun
    height: TapRun
    products: tuple[tuple[int, Sum], ...]
    offset: int


@dataclass(frozen=True)
class VoxelForm:
    """The voxel form of one workload.

    `width` registers of voxels, `registers` sums a pass, `rows`, `planes`.
    """

    work: Workload
    tiling: Tiling

    @property
    def all_sums(self) -> list[Sum]:
        """Every phase and filter, depth outermost; along the width in the order of the outputs."""
        plan = self.work.plan
        depth, height, width = plan.axes
        across = [(place + width.lo) % width.stride for place in range(width.stride)]
        residues = itertools.product(range(depth.stride), range(height.stride), across)
        return list(itertools.product(residues, range(plan.filters)))

    def reach(self, tap: int, residue: int) -> int:
        """The input of lane 0 for a tap of a phase along the width; negative: before the first.

        Lane 0 of a phase is its own first output, or some phases would waste a lane, and rows of
        a whole number of registers a whole register.
        """
        axis = self.work.plan.axes[2]
        first = ((residue - axis.lo) % axis.stride + axis.lo) // axis.stride
        return first - tap * axis.dilation

    def _backwards(self, product: tuple[int, Sum]) -> int:
        tap, (residues, _) = product
        return -self.reach(tap, residues[2])

    @property
    def passes(self) -> list[list[Sum]]:
        """The sums, cut so that those of one pass are registers."""
        every, most = self.all_sums, self.tiling.registers
        return [every[i : i + most] for i in range(0, len(every), most)]

    @property
    def bundles(self) -> list[list[Bundle]]:
        """The bundles of each pass, in the order of the packed weights."""
        depth, height, width = self.work.plan.axes
        offset = 0
        found = []
        for chosen in self.passes:
            bundles = []
            for a, b in itertools.product(TapRun.of(depth), TapRun.of(height)):
                products = tuple(
                    (t, one)
                    for t in range(width.max_taps)
                    for one in chosen
                    if one[0][0] < a.residues
                    and one[0][1] < b.residues
                    and one[0][2] + t * width.stride < width.kernel
                )
                # Products of one input register follow each other.
                products = tuple(
                    sorted(products, key=lambda one: -self.reach(one[0], one[1][0][2]))
                )
                if products:
                    bundles.append(Bundle(a, b, products, offset))
                    offset += a.count * b.count * self.work.plan.in_channels * len(products)
            found.append(bundles)
        return found

    def kernel_index(self, a: int, b: int, product: tuple[int, Sum]) -> tuple[int, ...]:
        """The entry of the kernel for a product at depth tap ``a`` and height tap ``b``.

        Without its in-channel.
        """
        t, (residue, filter_) = product
        strides = [axis.stride for axis in self.work.plan.axes]
        return (*(r + k * s for r, k, s in zip(residue, (a, b, t), strides, strict=True)), filter_)

    @property
    def vectors(self) -> int:
        """Registers of voxels in a row."""
        axis = self.work.plan.axes[2]
        return -(-axis.out // (axis.stride * self.tiling.vector))

    @property
    def border(self) -> tuple[int, int]:
        """Voxels of a packed row that are read before the first and from the first on."""
        axis = self.work.plan.axes[2]
        taps = range(axis.max_taps)
        reached = [self.reach(tap, r) for r in range(axis.stride) for tap in taps]
        return max(0, -min(reached)), max(reached) + self.vectors * self.tiling.vector

    @property
    def origin(self) -> int:
        """Where a packed row holds the first voxel: whole registers, so that most are aligned."""
        vector = self.tiling.vector
        return -(-self.border[0] // vector) * vector

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """Packed input: planes of the ring, rows, channels, voxels."""
        depth, height, _ = self.work.plan.axes
        vector = self.tiling.vector
        voxels = -(-(self.origin + self.border[1]) // vector) * vector
        if voxels % (8 * vector) == 0:
            # Equal places of consecutive channels would share few sets of the cache.
            voxels += vector
        return (
            (depth.max_taps - 1) * depth.dilation + 1,
            self.tiling.rows + (height.max_taps - 1) * height.dilation,
            self.work.plan.in_channels,
            voxels,
        )

    @property
    def line_shape(self) -> tuple[int, ...]:
        """Finished rows of one position, by sum: phases x filters, voxels."""
        return (len(self.all_sums), self.vectors * self.tiling.vector)

    @property
    def row_shape(self) -> tuple[int, ...]:
        """One output row with its phases interleaved, before the crop."""
        axis = self.work.plan.axes[2]
        factor = axis.stride * (1 if self.work.plan.channels_first else self.work.plan.filters)
        return (self.vectors * self.tiling.vector * factor,)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("voxel", self.work.plan.kernel_shape, self.tiling.registers)

    def packer(self) -> Any:
        """The function that packs the weights."""
        work = self.work

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            for bundle in itertools.chain(*self.bundles):
                self._pack_bundle(bundle, kernel, packed, rounded)

        return cast.packer(work, products(work) * work.plan.in_channels, pack_kernel)

    def _pack_bundle(self, bundle: Bundle, kernel: Any, packed: Any, rounded: Formula) -> None:
        channels = self.work.plan.in_channels
        run = len(bundle.products)
        for a, b in itertools.product(range(bundle.depth.count), range(bundle.height.count)):
            start = bundle.offset + (a * bundle.height.count + b) * channels * run
            with T.serial(i64(0), i64(channels)) as c:
                for j, product in enumerate(bundle.products):
                    place = self.kernel_index(
                        bundle.depth.first + a, bundle.height.first + b, product
                    )
                    index = (*map(i64, place), c)
                    element = rounded.at(kernel[index], i64(0))
                    T.buffer_store(packed, element, [i64(start + j) + c * i64(run)])

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy."""
        taps, start = cast.cast_arrays(self.work, kernel, bias)
        pieces = []
        for bundle in itertools.chain(*self.bundles):
            rows = itertools.product(range(bundle.depth.count), range(bundle.height.count))
            for a, b in rows:
                place = bundle.depth.first + a, bundle.height.first + b
                chosen = [taps[self.kernel_index(*place, product)] for product in bundle.products]
                pieces.append(np.stack(chosen, axis=-1).ravel())
        return np.concatenate([*pieces, start])

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        depth, height, _ = self.work.plan.axes
        chunks = -(-positions(depth) // self.tiling.planes)
        blocks = -(-positions(height) // self.tiling.rows)
        ring = Region(None, 0, self.ring_shape)
        line = Region(None, ring.size, self.line_shape)
        row = Region(None, ring.size + line.size, self.row_shape)
        size = products(self.work) * self.work.plan.in_channels
        scratch = row.offset + row.size
        frame = Frame(self.work, chunks * blocks, size, self.work.plan.filters, scratch)
        emit = VoxelKernel(self, frame)
        return frame.kernel(lambda n, index: emit.tile(n, *divide(index, blocks))), frame
