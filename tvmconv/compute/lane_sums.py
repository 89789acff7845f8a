"""Sums of outputs whose lanes are voxels along the width: what the forms for few filters share."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tvmconv.compute.frame import i64
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.workload import Workload
from tvmconv.geometry import Axis

__all__ = ["LaneSums", "Sum", "TapRun", "apart", "products"]

#: A sum: its phase and its filter.
Sum = tuple[tuple[int, ...], int]


def products(work: Workload) -> int:
    """Products of one input channel and one position.

    Multiply-adds in the innermost loops, unrolled.
    """
    total = work.plan.filters
    for axis in work.plan.axes:
        total *= axis.kernel
    return total


def apart(voxels: int, vector: int) -> int:
    """At least so many voxels: an odd number of registers.

    Equal places of consecutive rows would share few sets of the cache otherwise.
    """
    return (-(-voxels // vector) | 1) * vector


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
class LaneSums:
    """Where the sums of a workload have their inputs and their outputs."""

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
    def factor(self) -> int:
        """Outputs of a row side by side for each lane.

        Phases of the width, and filters where they are last.
        """
        stride = self.work.plan.axes[2].stride
        return stride * (1 if self.work.plan.channels_first else self.work.plan.filters)
