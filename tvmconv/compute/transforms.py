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
    F(4,2), points 1/2, -1/2,        u = (a + b, a - b, c + d, c - d, 25/64 d0 - 29/16 d2 + d4)
            5/4, -5/4, inf               a = 25/16 d0 - d2      b = 25/8 d1 - 2 d3
                                         c = 5/16 d0 - 5/4 d2   d = 1/4 d1 - d3
                                     g = ((8 g0 + 4 g1)/21, (8 g0 - 4 g1)/21,
                                          (-32 g0 - 40 g1)/105, (-32 g0 + 40 g1)/105, g1)
                                     y_j = (m0 + (-1)^j m1)/2^j + (m2 + (-1)^j m3) (5/4)^j,
                                         and m4 with y_3

Signs stand with the taps, so that every u is one of a few *kinds*, sums that begin positive, and
phases whose inputs overlap share them. F(m, 1) is the identity, F(1, r) the plain sum of products.

The points of F(4,2) come in pairs around 0, none above 5/4: its errors are half those with points
0, 1, -1 and 2, whose powers differ more. All factors have few digits, so that sums of taps are
exact in float64, in any order, until they are divided by 21 or 105.

Sources: A. Toom (1963), S. Cook (1966); S. Winograd, Arithmetic Complexity of Computations (1980);
A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

import itertools
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
    "divided",
    "outputs_of",
    "signed_sum",
    "tile_outputs",
    "transform",
]

#: Sums of inputs, as (distance from the first, factor): the input, its difference from and sum with
#: a later one, and those of F(4,2). The farthest input is the last.
KINDS: dict[str, tuple[tuple[int, float], ...]] = {
    "x": ((0, 1),),
    "e": ((0, 1), (1, -1)),
    "a": ((0, 1), (2, -1)),
    "b": ((0, 1), (1, 1)),
    "p": ((0, 25 / 16), (2, -1), (1, 25 / 8), (3, -2)),
    "q": ((0, 25 / 16), (2, -1), (1, -25 / 8), (3, 2)),
    "r": ((0, 5 / 16), (2, -5 / 4), (1, 1 / 4), (3, -1)),
    "s": ((0, 5 / 16), (2, -5 / 4), (1, -1 / 4), (3, 1)),
    "t": ((0, 25 / 64), (2, -29 / 16), (4, 1)),
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
        Per output, the factor of each product.
    divisors : tuple of int
        Per product, what the sum of its taps is divided by when those of all axes are made: until
        then they are exact. Empty where all are 1.
    """

    outputs: int
    taps: int
    points: tuple[Column, ...]
    weights: tuple[tuple[float, ...], ...]
    result: tuple[tuple[float, ...], ...]
    divisors: tuple[int, ...] = ()

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
_FIVE = (("p", 0), ("q", 0), ("r", 0), ("s", 0), ("t", 0))

#: By (outputs, taps).
SCHEMES: dict[tuple[int, int], Scheme] = {
    **{(outputs, 1): _identity(outputs) for outputs in (1, 2, 3, 4)},
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
    (4, 2): Scheme(
        4,
        2,
        _FIVE,
        ((8, 4), (8, -4), (-32, -40), (-32, 40), (0, 1)),
        (
            (1, 1, 1, 1, 0),
            (1 / 2, -1 / 2, 5 / 4, -5 / 4, 0),
            (1 / 4, 1 / 4, 25 / 16, 25 / 16, 0),
            (1 / 8, -1 / 8, 125 / 64, -125 / 64, 1),
        ),
        (21, 21, 105, 105, 1),
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
#: Outputs of a long tile, and the inputs of its axis and channels that it takes.
_LONG, _LONG_SIZE, _LONG_CHANNELS = 4, 8, 32


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


def tile_outputs(axes: Sequence[Axis], channels: int) -> list[tuple[int, int, int]]:
    """The outputs that a tile may have along the three axes.

    Those of `outputs_of`; or four along one axis. F(4,2) errs by half more than the direct form
    where the channels are as many, so its tiles are for sums over many channels and several taps
    in all axes, which leave room for it, and for axes that they fill.
    """
    depth, height, width = plain = [outputs_of(axis) for axis in axes]
    found = list(itertools.product(depth, height, width))
    if channels < _LONG_CHANNELS or any(axis.max_taps == 1 for axis in axes):
        return found
    for number, axis in enumerate(axes):
        served = all((_LONG, phase.taps) in SCHEMES for phase in axis.phases)
        if served and axis.size >= _LONG_SIZE:
            some = [(_LONG,) if n == number else one for n, one in enumerate(plain)]
            found += itertools.product(some[0], some[1], some[2])
    return found


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


def divided(scheme: Scheme, sums: np.ndarray, axis: int) -> np.ndarray:
    """Sums of taps of all axes, with the points of a scheme along ``axis``, divided as they are."""
    if not scheme.divisors:
        return sums
    shape = [-1 if number == axis else 1 for number in range(sums.ndim)]
    return sums / np.array(scheme.divisors, sums.dtype).reshape(shape)


def signed_sum(terms: Sequence[tuple[Any, float]]) -> Any:
    """The sum of the terms whose factor is not 0; the first of them is positive."""
    total = None
    for value, factor in terms:
        if not factor:
            continue
        term = value if abs(factor) == 1 else value * abs(factor)
        if total is None:
            assert factor > 0
            total = term
        else:
            total = total + term if factor > 0 else total - term
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
