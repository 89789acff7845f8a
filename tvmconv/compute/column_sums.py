"""The sums of the column form: products of planes, of which each output takes one for each tap."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from tvmconv.compute.lane_sums import LaneSums, Sum, TapRun

__all__ = ["Bundle", "PlaneSums"]


@dataclass(frozen=True)
class Bundle:
    """Products that share loops: a run of depth taps, one of height taps, one pass over the sums.

    Attributes
    ----------
    products : tuple of (int, Sum)
        Width tap and sum of each product of one input channel.
    """

    depth: TapRun
    height: TapRun
    products: tuple[tuple[int, Sum], ...]


class PlaneSums(LaneSums):
    """The sums of one workload whose channels are columns.

    `registers` sums a pass, `width` registers of voxels, `rows`, `planes`.
    """

    @property
    def passes(self) -> list[list[Sum]]:
        """The sums, cut so that those of one pass are registers."""
        every, most = self.all_sums, self.tiling.registers
        return [every[i : i + most] for i in range(0, len(every), most)]

    @property
    def bundles(self) -> list[list[Bundle]]:
        """The bundles of each pass, which follow each other."""
        depth, height, width = self.work.plan.axes
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
                    bundles.append(Bundle(a, b, products))
            found.append(bundles)
        return found

    @property
    def border(self) -> tuple[int, int]:
        """Voxels of a row that are read before the first, and that are there from it on.

        With room for whole blocks of a transpose.
        """
        before, after = super().border
        vector = self.tiling.vector
        return before, max(after, -(-self.work.plan.axes[2].size // vector) * vector)

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
