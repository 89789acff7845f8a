"""What the Toom-Cook forms have in common: their combinations and packed weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tvmconv.compute import point_pairs
from tvmconv.compute.lanes import Group
from tvmconv.compute.pairing import Pairing
from tvmconv.compute.point_packing import pack, packer
from tvmconv.compute.points import Combination, Paired, combinations, packed_size
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.transforms import AxisTiles
from tvmconv.compute.workload import Workload

__all__ = ["PointForm"]


@dataclass(frozen=True)
class PointForm:
    """What the Toom-Cook forms have in common: their combinations and packed weights.

    A form says how its ``axes`` are cut into tiles and its filters into ``groups`` of lanes.
    """

    work: Workload
    tiling: Tiling

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles, AxisTiles]:
        """The three axes, cut into tiles."""
        raise NotImplementedError  # each form has its own

    @cached_property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes; their weights are placed by `combinations`."""
        raise NotImplementedError  # each form has its own

    @cached_property
    def combinations(self) -> list[Combination]:
        """The phases by their numbers of taps in the three axes."""
        return combinations(self.work, self.axes, self.groups, int(self.pairing is not None))

    @cached_property
    def pairing(self) -> Pairing | None:
        """Which channels are pairs; None: none."""
        return Pairing(self.work.plan.in_channels) if self.tiling.paired else None

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        paired = ("paired",) if self.tiling.paired else ()
        shape = self.work.plan.kernel_shape
        return (shape, self.tiling.outputs, self.bias_size, *paired, *self.groups)

    def combination(self, classes: Sequence[int]) -> Combination:
        """The combination of one class an axis."""
        counts = tuple(len(axis.classes) for axis in self.axes)
        return self.combinations[int(np.ravel_multi_index(tuple(classes), counts))]

    def packer(self) -> Any:
        """The function that packs the weights."""
        return packer(
            self.work, self.combinations, self.groups, self.bias_size, self.paired,
            together=self.tiling.masked,
        )  # fmt: skip

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy, bit for bit."""
        lanes = self.bias_size
        return pack(self.work, self.combinations, self.groups, lanes, kernel, bias, self.paired)

    @cached_property
    def paired(self) -> Paired | None:
        """How the weights are scaled where channels are pairs."""
        if self.pairing is None:
            return None
        size, lanes = packed_size(self.combinations), self.bias_size
        return Paired(self.pairing, size, lanes, point_pairs.growth(self.axes)[1], self.axes)

    @property
    def bias_size(self) -> int:
        """Lanes of all filters."""
        last = self.groups[-1]
        return last.lane_offset + last.blocks * last.lanes

    @cached_property
    def packed_size(self) -> int:
        """Elements of the packed kernel."""
        return packed_size(self.combinations) + (2 * self.bias_size if self.pairing else 0)
