"""Output phases as one row of tiles: which phase, which voxels, which taps a block has.

A voxel of a phase is a position ``(first + j) * stride + residue - lo`` on each axis. All phases
have the same room, the most voxels that one of them has; places beyond a phase's own are not
stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from tvmconv.compute.cuda.threads import divide, split
from tvmconv.geometry import Axis, Plan

__all__ = ["AxisPhase", "Place", "Room", "phase_of"]


@dataclass(frozen=True)
class Room:
    """How many voxels each phase has room for, by axis, and how many phases there are."""

    plan: Plan

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Most voxels of a phase along each axis."""
        d, h, w = (
            max((phase.count for phase in axis.phases), default=0) for axis in self.plan.axes
        )
        return d, h, w

    @property
    def voxels(self) -> int:
        """Most voxels of a phase."""
        return math.prod(self.sizes)

    @property
    def strides(self) -> tuple[int, int, int]:
        """Phases along each axis."""
        d, h, w = (axis.stride for axis in self.plan.axes)
        return d, h, w

    @property
    def phases(self) -> int:
        """All phases."""
        return math.prod(self.strides)


@dataclass(frozen=True)
class AxisPhase:
    """The phase of a block along one axis, as expressions: see `tvmconv.geometry.Phase`."""

    axis: Axis
    residue: Any
    first: Any
    count: Any
    taps: Any

    @classmethod
    def of(cls, axis: Axis, residue: Any, name: Callable[[Any], Any]) -> AxisPhase:
        """The phase of ``residue``; ``name`` gives each number a name of its own."""

        def const(value: int) -> Any:
            return tirx.IntImm(str(residue.ty), value)

        residue = name(residue)
        stride = axis.stride
        before = tirx.max(const(axis.lo) - residue, const(0)) + const(stride - 1)
        first = name(divide(before, stride)[0])
        # One stride more, so that nothing negative is divided.
        end = divide(const(axis.out - 1 + axis.lo + stride) - residue, stride)[0]
        taps = divide(const(axis.kernel + stride - 1) - residue, stride)[0]
        return cls(axis, residue, first, name(end - first), name(taps))

    def output(self, j: Any) -> Any:
        """The output position of voxel ``j``."""
        dtype = str(j.ty)
        stride = tirx.IntImm(dtype, self.axis.stride)
        return (self.first + j) * stride + (self.residue - tirx.IntImm(dtype, self.axis.lo))

    def kernel_index(self, tap: Any) -> Any:
        """The kernel's entry for a tap."""
        return self.residue + tap * tirx.IntImm(str(tap.ty), self.axis.stride)

    def packed_index(self, tap: Any) -> Any:
        """The same where taps are packed residue by residue."""
        full, rest = divmod(self.axis.kernel, self.axis.stride)
        dtype = str(tap.ty)
        before = self.residue * tirx.IntImm(dtype, full)
        return before + tirx.min(self.residue, tirx.IntImm(dtype, rest)) + tap


def phase_of(plan: Plan, number: Any, name: Callable[[Any], Any]) -> list[AxisPhase]:
    """The phases along the three axes of phase ``number``."""
    room = Room(plan)
    residues = split(number, room.strides)
    return [AxisPhase.of(axis, r, name) for axis, r in zip(plan.axes, residues, strict=True)]


@dataclass(frozen=True)
class Place:
    """A voxel of a phase: its numbers along the axes, and whether it exists."""

    numbers: tuple[Any, Any, Any]
    exists: Any

    @classmethod
    def of(cls, plan: Plan, phases: list[AxisPhase], flat: Any) -> Place:
        """Voxel ``flat`` of a phase's room."""
        d, h, w = split(flat, Room(plan).sizes)
        inside = [j < phase.count for j, phase in zip((d, h, w), phases, strict=True)]
        return cls((d, h, w), tirx.all(*inside))
