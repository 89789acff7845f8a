"""Boxes of Toom-Cook tiles: which outputs a block of threads makes, from which inputs and sums.

Along each axis a block has the same number of *columns*, sums of inputs that are multiplied, for
every phase: ``columns / points`` tiles of a phase with so many points. So blocks of all phases have
the same products to make. An axis of one output a tile is not transformed: its columns are
inputs, and its taps are passes of the block.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tvmconv.compute.cuda.threads import split
from tvmconv.compute.points import Combination
from tvmconv.compute.schemes import Column
from tvmconv.compute.transforms import AxisTiles, PhaseClass

__all__ = ["AxisBoxes", "Box", "Slots", "boxes"]


@dataclass(frozen=True)
class Slots:
    """The boxes of one phase of an axis, which follow each other.

    Attributes
    ----------
    group, member : int
        Class of the phase, and its number there.
    place, start : int
        First output, and the input of d_0 for it.
    first, count : int
        Number of the first box among those of the axis, and boxes.
    """

    group: int
    member: int
    place: int
    start: int
    first: int
    count: int


@dataclass(frozen=True)
class AxisBoxes:
    """One axis, cut into tiles and boxes of ``columns`` sums."""

    tiles: AxisTiles
    columns: int

    @property
    def direct(self) -> bool:
        """Whether the axis is computed tap by tap."""
        return self.tiles.outputs == 1

    @property
    def passes(self) -> tuple[int, ...]:
        """How often a block walks through the channels, for each class."""
        return tuple(one.scheme.taps if self.direct else 1 for one in self.tiles.classes)

    def points(self, group: int) -> tuple[Column, ...]:
        """The sums of inputs of a tile in one pass."""
        return (("x", 0),) if self.direct else self.tiles.classes[group].scheme.points

    @property
    def whole(self) -> bool:
        """Whether the columns are whole tiles of every class."""
        groups = range(len(self.tiles.classes))
        return all(self.columns % len(self.points(group)) == 0 for group in groups)

    def in_box(self, group: int) -> int:
        """Tiles of a box."""
        return self.columns // len(self.points(group))

    def reach(self, group: int) -> int:
        """Inputs that a box reads in one pass."""
        taps = 1 if self.direct else self.tiles.classes[group].scheme.taps
        return self.in_box(group) * self.tiles.outputs + taps - 1

    def weight_points(self, group: int) -> int:
        """Points of one pass that differ in their weights."""
        return 1 if self.direct else len(self.tiles.classes[group].scheme.weights)

    @cached_property
    def phases(self) -> tuple[Slots, ...]:
        """The boxes by their phases."""
        axis, found, first = self.tiles.axis, [], 0
        for group, one in enumerate(self.tiles.classes):
            for member, (place, start) in enumerate(zip(one.places, one.starts, strict=True)):
                outputs = max(0, -(-(axis.out - place) // axis.stride))
                count = -(-outputs // (self.tiles.outputs * self.in_box(group)))
                if count:
                    start += self.tiles.lowest  # noqa: PLW2901
                    found.append(Slots(group, member, place, start, first, count))
                    first += count
        return tuple(found)

    @property
    def slots(self) -> int:
        """All boxes."""
        return sum(phase.count for phase in self.phases)

    def exact(self, group: int) -> bool:
        """Whether every output of every box of a class exists."""
        axis, span = self.tiles.axis, self.tiles.outputs * self.in_box(group)
        places = self.tiles.classes[group].places
        return all(-(-(axis.out - place) // axis.stride) % span == 0 for place in places)


@dataclass(frozen=True)
class Box:
    """The boxes of one combination of classes.

    Attributes
    ----------
    combination : Combination
        Its weights.
    axes : tuple of AxisBoxes
        The three axes.
    groups : tuple of int
        Its classes.
    unit : int
        Sums that meet the same weights are padded to a multiple.
    """

    combination: Combination
    axes: tuple[AxisBoxes, AxisBoxes, AxisBoxes]
    groups: tuple[int, int, int]
    unit: int

    def _each(self, name: str) -> tuple[int, int, int]:
        d, h, w = (getattr(a, name)(g) for a, g in zip(self.axes, self.groups, strict=True))
        return d, h, w

    @property
    def classes(self) -> tuple[PhaseClass, PhaseClass, PhaseClass]:
        """Its phases along the axes."""
        return self.combination.classes

    @property
    def outputs(self) -> tuple[int, int, int]:
        """Outputs of a tile."""
        d, h, w = (axis.tiles.outputs for axis in self.axes)
        return d, h, w

    @property
    def tiles(self) -> tuple[int, int, int]:
        """Tiles of a box."""
        return self._each("in_box")

    @property
    def reach(self) -> tuple[int, int, int]:
        """Inputs that a box reads in one pass."""
        return self._each("reach")

    @property
    def exact(self) -> tuple[bool, ...]:
        """Along which axes every output exists."""
        return tuple(a.exact(g) for a, g in zip(self.axes, self.groups, strict=True))

    @property
    def points(self) -> list[tuple[Column, ...]]:
        """The sums of inputs of a tile in one pass, by axis."""
        return [axis.points(group) for axis, group in zip(self.axes, self.groups, strict=True)]

    @property
    def weight_points(self) -> tuple[int, int, int]:
        """Points of one pass that differ in their weights, by axis."""
        return self._each("weight_points")

    @property
    def weight_strides(self) -> tuple[int, int, int]:
        """Points from one to the next along each axis, in the packed weights; passes included."""
        _, h, w = (len(one.scheme.weights) for one in self.classes)
        return h * w, w, 1

    @property
    def rows(self) -> int:
        """Sums of inputs that meet the same weights, padded."""
        columns = math.prod(axis.columns for axis in self.axes)
        return -(-columns // math.prod(self.weight_points) // self.unit) * self.unit

    def row(self, const: Any, tile: Sequence[Any]) -> Any:
        """The row of a tile's first sum: sums that meet the same weights are side by side."""
        flat = const(0)
        for axis, group, count, t in zip(
            self.axes, self.groups, self.weight_points, tile, strict=True
        ):
            points = len(axis.points(group))
            step = points if count == 1 else 1
            flat = flat * const(axis.in_box(group) * step) + t * const(step)
        return flat

    def distance(self, point: Sequence[int]) -> int:
        """Rows from a tile's first sum to its sum ``point``."""
        weights = flat = 0
        for axis, group, count, p in zip(
            self.axes, self.groups, self.weight_points, point, strict=True
        ):
            alike = count == 1
            step = len(axis.points(group)) if alike else 1
            weights = weights * count + (0 if alike else p)
            flat = flat * axis.in_box(group) * step + (p if alike else 0)
        return weights * self.rows + flat

    @property
    def results(self) -> list[tuple[tuple[float, ...], ...]]:
        """The factors of the products of a tile in each output, by axis."""
        return [
            ((1,),) if axis.direct else one.scheme.result
            for axis, one in zip(self.axes, self.classes, strict=True)
        ]

    def weight_point(self, number: Any) -> list[Any]:
        """The points along the axes of weights ``number`` of a pass."""
        return split(number, self.weight_points)


def boxes(
    axes: tuple[AxisBoxes, AxisBoxes, AxisBoxes], combinations: Sequence[Combination], unit: int
) -> list[Box]:
    """The boxes of every combination, in the order of `tvmconv.compute.points`."""
    counts = [range(len(axis.tiles.classes)) for axis in axes]
    groups = itertools.product(*counts)
    return [
        Box(c, axes, (d, h, w), unit) for c, (d, h, w) in zip(combinations, groups, strict=True)
    ]
