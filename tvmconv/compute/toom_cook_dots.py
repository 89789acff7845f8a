"""The Toom-Cook form for few filters and many taps: the dot form with fewer products of an axis.

The lanes of a register are input channels, as in the dot form, whose register tiles, edges of rows
and totals these are. Along the height phases have schemes (`cook_schemes`); the taps of the depth
and the width are summed as they are. A task has one tile of the height, and walks through planes:
its sums of input rows, which are whole rows of vectors, are made once for each plane and wait in a
ring. Channels first, its input rows are transposed before. Each product of a scheme then is a sum
of its own over the taps of depth and width and the channels, of a register for every output of a
register tile; they become outputs as registers, since lanes are added up after that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast
from tvmconv.compute.cook_schemes import Phase, phases, transform
from tvmconv.compute.dots import DotForm
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Frame, Region, divide, i64, positions

__all__ = ["ToomCookDotForm"]

#: Elements between rows of sums beyond their size: powers of two would share sets of the cache.
_SKEW = 16


@dataclass(frozen=True)
class ToomCookDotForm(DotForm):
    """The form of one workload: see `DotForm`; `outputs` of a tile of the height."""

    @property
    def span(self) -> int:
        """Outputs of a tile of the height, all phases."""
        return self.tiling.outputs[1] * self.work.plan.axes[1].stride

    @property
    def height_tiles(self) -> int:
        """Tiles of the height."""
        return -(-self.work.plan.axes[1].out // self.span)

    @cached_property
    def phases(self) -> list[Phase]:
        """The phases of the height."""
        return phases(self.work.plan.axes[1], self.tiling.outputs[1])

    def sums_before(self, phase: Phase) -> int:
        """Sums of input rows of the phases before one."""
        return sum(one.scheme.products for one in self.phases[: self.phases.index(phase)])

    @property
    def packs(self) -> bool:
        """Sums of inputs are made in scratch."""
        return True

    @property
    def ring_shape(self) -> tuple[int, ...]:
        """Sums of inputs: planes of the ring, sums of rows of each phase, voxels and channels."""
        depth, _, width = self.work.plan.axes
        return (
            depth.max_taps,
            sum(one.scheme.products for one in self.phases),
            width.size * self.work.plan.in_channels + _SKEW,
        )

    @property
    def first_row(self) -> int:
        """The first input row of a tile of the height, behind as many as outputs of a phase."""
        return min(one.start for one in self.phases)

    @property
    def rows_shape(self) -> tuple[int, ...]:
        """Channels first: input rows of a tile of the height and a plane, channels last."""
        if not self.work.plan.channels_first:
            return (0, 0)
        end = max(one.start + one.scheme.products for one in self.phases)
        return (end - self.first_row, self.ring_shape[-1])

    @property
    def cells_shape(self) -> tuple[int, ...]:
        """Sums of products: outputs of the depth, products of a scheme, outputs of a row, lanes."""
        depth, _, width = self.work.plan.axes
        products = max(one.scheme.products for one in self.phases)
        cells = max(tile.groups for tile in self.tiles) * width.stride * self.work.plan.filters
        return (depth.stride, products, cells, self.tiling.vector)

    def region(self, weights: Any, phase: Phase) -> Region:
        """Packed weights of a phase: product, depth tap, block of channels, width tap, filter."""
        depth, _, blocks, width, filters, channels = self.weights_shape
        shapes = [
            (one.scheme.products, depth, blocks, width, filters, channels) for one in self.phases
        ]
        number = self.phases.index(phase)
        return Region(weights, sum(map(math.prod, shapes[:number])), shapes[number])

    @property
    def packed_size(self) -> int:
        """Elements of the packed kernel."""
        return sum(self.region(None, one).size for one in self.phases)

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        return ("toom-cook dots", self.work.plan.kernel_shape, self.block, self.tiling.outputs)

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The packed kernel, then the bias. Sums of taps are made in float64 and rounded once."""
        axis, dtype = self.work.plan.axes[1], np.dtype(self.work.accumulate_dtype)
        parts = []
        with np.errstate(over="ignore"):
            taps, start = cast.cast_arrays(self.work, kernel, bias)
            taps = taps.astype(np.float64)
            for phase in self.phases:
                sums = transform(phase.scheme, taps[:, phase.residue :: axis.stride], 1)
                products, depth, blocks, width, filters, channels = self.region(None, phase).shape
                cut = sums.reshape(depth, products, width, filters, blocks, channels)
                parts.append(cut.transpose(1, 0, 4, 2, 3, 5).ravel().astype(dtype))
        return np.concatenate([*parts, start])

    def packer(self) -> Any:
        """The same as a function."""
        stride = self.work.plan.axes[1].stride

        def pack_kernel(kernel: Any, packed: Any, rounded: Formula) -> None:
            sums = T.sblock_alloc_buffer((i64(1),), "float64", scope="local")
            for phase in self.phases:
                region = self.region(packed, phase)
                taps = phase.scheme.taps
                for number, (factors, by) in enumerate(phase.scheme.weights):
                    with T.grid(*map(i64, region.shape[1:])) as (a, o, t, f, lane):
                        channel = o * i64(self.block) + lane
                        for k, factor in enumerate(factors):
                            row = i64(phase.residue + (taps - 1 - k) * stride)
                            tap = rounded.at(kernel[a, row, t, f, channel], i64(0))
                            term = tap.astype("float64") * tirx.const(factor, "float64")
                            total = sums[i64(0)] + term if k else term
                            T.buffer_store(sums, total, [i64(0)])
                        total = sums[i64(0)] / tirx.const(float(by), "float64")
                        value = total.astype(self.work.accumulate_dtype)
                        region.store(value, i64(number), a, o, t, f, lane)

        return cast.packer(self.work, self.packed_size, pack_kernel)

    @property
    def scratch_size(self) -> int:
        """Elements of scratch of a task."""
        return sum(map(math.prod, (self.ring_shape, self.cells_shape, self.rows_shape)))

    def kernel(self) -> tuple[Any, Frame]:
        """The kernel function and its frame."""
        from tvmconv.compute.toom_cook_dot_kernel import ToomCookDotKernel

        chunks = -(-positions(self.work.plan.axes[0]) // self.tiling.planes)
        frame = Frame(
            self.work, chunks * self.height_tiles, self.packed_size,
            self.work.plan.filters, self.scratch_size,
        )  # fmt: skip
        emit = ToomCookDotKernel(self, frame)
        return frame.kernel(lambda n, index: emit.task(n, *divide(index, self.height_tiles))), frame
