"""Where the transformed weights of the Toom-Cook form lie; `point_packing` makes them.

One part for each combination of tap numbers in the three axes and each group of channel lanes:
``[phase d][phase h][phase w][block][point d][point h][point w][in channel][lanes]``, which is the
order in which the kernel reads them. An axis with one tap has one point here, since all its
products have the same weights. Where channels are paired (`toom_cook_pairs`), what sums begin at
stands before the channels, these in the order of `Pairing`, and the filters' scales behind all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from tvm import tirx

from tvmconv.compute.frame import Region
from tvmconv.compute.lanes import Group
from tvmconv.compute.pairing import Pairing
from tvmconv.compute.transforms import AxisTiles, PhaseClass
from tvmconv.compute.workload import Workload

__all__ = ["Combination", "Paired", "combinations", "packed_size", "pick"]


@dataclass(frozen=True, eq=False)
class Combination:
    """The phases with one number of taps in each axis. Forms with equal ones share them.

    Attributes
    ----------
    classes : tuple of PhaseClass
        Per axis.
    regions : tuple of (int, tuple of int)
        Per group of lanes: where the weights begin, and their shape.
    """

    classes: tuple[PhaseClass, PhaseClass, PhaseClass]
    regions: tuple[tuple[int, tuple[int, ...]], ...]

    @cached_property
    def points(self) -> int:
        """Products of a tile."""
        return math.prod(len(group.scheme.points) for group in self.classes)

    def weights(self, target: Any, group: int) -> Region:
        """The part of one group of lanes."""
        offset, shape = self.regions[group]
        return Region(target, offset, shape)


@dataclass(frozen=True)
class Paired:
    """Where channels are pairs: which, and the filters' scales.

    Attributes
    ----------
    offset, lanes : int
        Where the scales lie, and how many lanes have two of them.
    growth : float
        How many times the size of taps their sums have.
    """

    pairing: Pairing
    offset: int
    lanes: int
    growth: float
    axes: tuple[AxisTiles, AxisTiles, AxisTiles]


def combinations(
    work: Workload, axes: Sequence[AxisTiles], cut: Sequence[Group], head: int = 0
) -> list[Combination]:
    """All of them, in the order of the kernel's loops; ``head`` rows before paired channels."""
    every = tuple(itertools.product(*(axis.classes for axis in axes)))
    return list(_combinations(every, tuple(cut), work.plan.in_channels, head))


@lru_cache(maxsize=1024)
def _combinations(
    every: tuple[tuple[PhaseClass, ...], ...], cut: tuple[Group, ...], channels: int, head: int
) -> tuple[Combination, ...]:
    """The same for the classes of the three axes."""
    found, offset = [], 0
    for depth, height, width in every:
        classes = (depth, height, width)
        regions = []
        for group in cut:
            shape = (
                *(len(one.places) for one in classes),
                group.blocks,
                *(len(one.scheme.weights) for one in classes),
                (0 if group.dots else head) + channels,
                group.lanes,
            )
            regions.append((offset, shape))
            offset += math.prod(shape)
        found.append(Combination(classes, tuple(regions)))
    return tuple(found)


def packed_size(found: Sequence[Combination]) -> int:
    """Elements of the packed kernel."""
    offset, shape = found[-1].regions[-1]
    return offset + math.prod(shape)


def pick(values: Sequence[int], index: Any) -> Any:
    """``values[index]`` as an expression."""

    def const(value: int) -> Any:
        return tirx.IntImm(str(index.ty), value)

    step = values[1] - values[0] if len(values) > 1 else 0
    if all(value == values[0] + step * i for i, value in enumerate(values)):
        return index * const(step) + const(values[0]) if step else const(values[0])
    found = const(values[-1])
    for i in reversed(range(len(values) - 1)):
        found = tirx.Select(index == const(i), const(values[i]), found)
    return found
