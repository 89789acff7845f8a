"""Minimal filtering along one axis (Toom-Cook, Winograd), for phases with two or three taps.

F(m, r) makes m outputs of a phase with r taps out of m + r - 1 products of a sum of inputs and a
sum of taps. With ``y_j = d_j g_0 + d_(j+1) g_1 [+ d_(j+2) g_2]`` (d_0 is the input of the highest
tap, which is g_0)::

    F(2,2), points 0, -1, inf        u = (d0 - d1, d1, d1 - d2)
                                     g = (g0, g0 + g1, -g1)
                                     y = (m0 + m1, m1 + m2)
    F(3,2), points 0, 1, -1, inf     u = (d0 - d2, d1 + d2, d1 - d2, d1 - d3)
                                     g = (g0, (g0 + g1)/2, (g1 - g0)/2, -g1)
                                     y = (m0 + m1 + m2, m1 - m2, m1 + m2 + m3)
    F(2,3), the same points and u    g = (g0, (g0 + g1 + g2)/2, (g1 - g0 - g2)/2, -g2)
                                     y = (m0 + m1 + m2, m1 - m2 + m3)

Signs stand with the taps, so that every u is one of four *kinds*, an input alone or with its
neighbour, and phases whose inputs overlap share them. F(m, 1) is the identity, F(1, r) the plain
sum of products.

Sources: A. Toom (1963), S. Cook (1966); S. Winograd, Arithmetic Complexity of Computations (1980);
A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tvmconv.geometry import Axis

__all__ = [
    "KINDS",
    "SCHEMES",
    "AxisTiles",
    "Column",
    "PhaseClass",
    "Scheme",
    "outputs_of",
    "signed_sum",
    "transform",
]

#: Sums of inputs, as (distance from the first, sign): the input, and its difference from and sum
#: with a later one.
KINDS: dict[str, tuple[tuple[int, int], ...]] = {
    "x": ((0, 1),),
    "e": ((0, 1), (1, -1)),
    "a": ((0, 1), (2, -1)),
    "b": ((0, 1), (1, 1)),
}

#: A sum of inputs: its kind and its first input.
Column = tuple[str, int]


@dataclass(frozen=True)
class Scheme:
    """F(outputs, taps).

    Attributes
    ----------
    points : tuple of (kind, offset)
        The sum of inputs of each product.
    weights : tuple of tuple of float
        Per product, the factor of each g (g_0 first). One entry where all products have the same.
    result : tuple of tuple of int
        Per output, the factor of each product: 0, 1 or -1.
    """

    outputs: int
    taps: int
    points: tuple[Column, ...]
    weights: tuple[tuple[float, ...], ...]
    result: tuple[tuple[int, ...], ...]

    @property
    def name(self) -> str:
        """As in the literature, ``F(2,3)``."""
        return f"F({self.outputs},{self.taps})"


def _direct(taps: int) -> Scheme:
    """A product for each tap: nothing is saved."""
    rows = tuple(tuple(float(i == k) for k in range(taps)) for i in range(taps))
    return Scheme(1, taps, tuple(("x", k) for k in range(taps)), rows, ((1,) * taps,))


def _identity(outputs: int) -> Scheme:
    rows = tuple(tuple(int(i == j) for j in range(outputs)) for i in range(outputs))
    return Scheme(outputs, 1, tuple(("x", j) for j in range(outputs)), ((1.0,),), rows)


_FOUR = (("a", 0), ("b", 1), ("e", 1), ("a", 1))

#: By (outputs, taps).
SCHEMES: dict[tuple[int, int], Scheme] = {
    **{(outputs, 1): _identity(outputs) for outputs in (1, 2, 3)},
    **{(1, taps): _direct(taps) for taps in (2, 3)},
    (2, 2): Scheme(
        2,
        2,
        (("e", 0), ("x", 1), ("e", 1)),
        ((1, 0), (1, 1), (0, -1)),
        ((1, 1, 0), (0, 1, 1)),
    ),
    (3, 2): Scheme(
        3,
        2,
        _FOUR,
        ((1, 0), (0.5, 0.5), (-0.5, 0.5), (0, -1)),
        ((1, 1, 1, 0), (0, 1, -1, 0), (0, 1, 1, 1)),
    ),
    (2, 3): Scheme(
        2,
        3,
        _FOUR,
        ((1, 0, 0), (0.5, 0.5, 0.5), (-0.5, 0.5, -0.5), (0, 0, -1)),
        ((1, 1, 1, 0), (0, 1, -1, 1)),
    ),
}


#: Inputs of an axis that is summed as it is: most of a tile would be padding, which adds nothing to
#: the few products of the plain sum and would have to cancel in the sums of a scheme.
_THIN = 2


def outputs_of(axis: Axis) -> tuple[int, ...]:
    """The outputs a tile should have along an axis; empty where a phase has 0 or over 3 taps.

    One, F(1, r), where nothing is to be saved: phases of one tap, or one or two inputs.
    """
    taps = {phase.taps for phase in axis.phases}
    if axis.dilation > 1 or not taps <= {1, 2, 3}:
        return ()
    if taps == {1} or axis.size <= _THIN:
        return (1,)
    return tuple(m for m in (2, 3) if all((m, count) in SCHEMES for count in taps))


def transform(scheme: Scheme, taps: np.ndarray, axis: int) -> np.ndarray:
    """The taps of a phase (along ``axis``, lowest first, so g_0 last), transformed."""
    last = scheme.taps - 1
    rows = []
    for factors in scheme.weights:
        row = factors[0] * np.take(taps, last, axis)
        for k in range(1, scheme.taps):
            row = row + factors[k] * np.take(taps, last - k, axis)
        rows.append(row)
    return np.stack(rows, axis)


def signed_sum(terms: Sequence[tuple[Any, int]]) -> Any:
    """The sum of the terms whose sign is not 0; the first of them is positive."""
    total = None
    for value, sign in terms:
        if not sign:
            continue
        if total is None:
            assert sign == 1
            total = value
        else:
            total = total + value if sign == 1 else total - value
    return total


@dataclass(frozen=True)
class PhaseClass:
    """The phases of an axis that have equally many taps.

    Attributes
    ----------
    residues : tuple of int
        First kernel entry of each phase.
    places : tuple of int
        First output of each phase: its outputs are ``place + stride * j``.
    starts : tuple of int
        Input of d_0 for output 0 of each phase, counted from `AxisTiles.lowest`.
    """

    scheme: Scheme
    residues: tuple[int, ...]
    places: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True)
class AxisTiles:
    """One axis, cut into tiles: ``stride * outputs`` outputs in a row.

    Attributes
    ----------
    outputs : int
        Outputs of each phase in a tile.
    block : int
        Tiles of a block along this axis.
    shared : bool
        Whether all phases use one transformed input, else each has its own.
    """

    axis: Axis
    outputs: int
    block: int
    shared: bool

    @property
    def span(self) -> int:
        """Outputs of a tile, all phases."""
        return self.outputs * self.axis.stride

    @property
    def tiles(self) -> int:
        """Tiles that cover the axis."""
        return -(-self.axis.out // self.span)

    @property
    def blocks(self) -> int:
        """Blocks that cover the axis."""
        return -(-self.tiles // self.block)

    def needing(self, group: PhaseClass) -> list[tuple[int, ...]]:
        """Per phase of a class: the tiles that need each product.

        All of them, or all but the last, whose outputs end with the axis.
        """
        start, stride = (self.tiles - 1) * self.span, self.axis.stride
        found = []
        for place in group.places:
            rows = [
                row
                for j, row in enumerate(group.scheme.result)
                if start + place + stride * j < self.axis.out
            ]
            points = range(len(group.scheme.points))
            found.append(tuple(self.tiles - (not any(row[p] for row in rows)) for p in points))
        return found

    @cached_property
    def _phases(self) -> list[tuple[int, int, int, int]]:
        """(taps, residue, place, input of d_0 for output 0) by place."""
        axis, found = self.axis, []
        for place in range(axis.stride):
            q, residue = divmod(place + axis.lo, axis.stride)
            taps = -(-(axis.kernel - residue) // axis.stride)
            found.append((taps, residue, place, q - taps + 1))
        return found

    @cached_property
    def lowest(self) -> int:
        """The first input that tile 0 reads (may be negative: the border)."""
        return min(start for *_, start in self._phases)

    @cached_property
    def classes(self) -> tuple[PhaseClass, ...]:
        """The phases by their number of taps."""
        found = []
        for taps in sorted({phase[0] for phase in self._phases}, reverse=True):
            some = [phase for phase in self._phases if phase[0] == taps]
            found.append(
                PhaseClass(
                    SCHEMES[self.outputs, taps],
                    tuple(phase[1] for phase in some),
                    tuple(phase[2] for phase in some),
                    tuple(phase[3] - self.lowest for phase in some),
                )
            )
        return tuple(found)

    def needed(self) -> list[Column]:
        """Every sum of inputs that tile 0 of some phase needs."""
        found = {
            (kind, start + offset)
            for group in self.classes
            for start in group.starts
            for kind, offset in group.scheme.points
        }
        return sorted(found, key=lambda column: (column[1], column[0]))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The sums of inputs that are stored for a tile, where the axis is shared.

        Those that begin behind the tile are the next tile's, which costs one more tile a block
        (`halo`), unless storing them twice is cheaper.
        """
        every = self.needed()
        wrapped = sorted({(kind, offset % self.outputs) for kind, offset in every})
        if len(wrapped) * (self.block + self._reach(every)) < len(every) * self.block:
            return tuple(wrapped)
        return tuple(every)

    def _reach(self, columns: Sequence[Column]) -> int:
        return max(offset for _, offset in columns) // self.outputs

    @property
    def halo(self) -> int:
        """Tiles behind a block whose sums the block reads."""
        if not self.shared or len(self.columns) == len(self.needed()):
            return 0
        return self._reach(self.needed())

    def column(self, start: int, point: Column) -> tuple[int, int]:
        """Which stored column a product reads, and how many tiles further on."""
        kind, offset = point[0], point[1] + start
        if (kind, offset) in self.columns and not self.halo:
            return self.columns.index((kind, offset)), 0
        return self.columns.index((kind, offset % self.outputs)), offset // self.outputs

    @cached_property
    def inputs(self) -> int:
        """Inputs that a block reads."""
        if self.shared:
            last = max(offset + KINDS[kind][-1][0] for kind, offset in self.columns)
        else:
            last = max(
                start + offset + KINDS[kind][-1][0]
                for group in self.classes
                for start in group.starts
                for kind, offset in group.scheme.points
            )
        return self.outputs * (self.block + self.halo - 1) + last + 1
