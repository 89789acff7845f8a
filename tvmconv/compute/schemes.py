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
    F(3,3), the same points and u    g = ((8 g0 + 4 g1 + 2 g2)/21, (8 g0 - 4 g1 + 2 g2)/21,
                                          (-32 g0 - 40 g1 - 50 g2)/105,
                                          (-32 g0 + 40 g1 - 50 g2)/105, g2)
                                     y_j as above, and m4 with y_2
    F(4,3), points 0, 11/16,         u = (1089/1024 d0 - 697/256 d2 + d4, a + b, a - b, c + d,
            -11/16, 3/2, -3/2, inf        c - d, 1089/1024 d1 - 697/256 d3 + d5)
                                         a = 99/64 d1 - 11/16 d3  b = 9/4 d2 - d4
                                         c = 363/512 d1 - 3/2 d3  d = 121/256 d2 - d4
                                     g = (1024 g0/1089, 128 (256 g0 + 176 g1 + 121 g2)/55055,
                                          128 (-256 g0 + 176 g1 - 121 g2)/55055,
                                          -128 (4 g0 + 6 g1 + 9 g2)/4095,
                                          128 (4 g0 - 6 g1 + 9 g2)/4095, g2)
                                     y_j = (m1 + (-1)^j m2) (11/16)^j + (m3 + (-1)^j m4) (3/2)^j,
                                         m0 with y_0, and m5 with y_3

Signs stand with the taps, so that every u is one of a few *kinds*, sums that begin positive, and
phases whose inputs overlap share them. F(m, 1) is the identity, F(1, r) the plain sum of products.

The points of the long schemes, the last three, come in pairs around 0, none far from 1: the errors
of F(4,2) are half those with points 0, 1, -1 and 2, whose powers differ more (`Scheme.noise`). All
factors have few digits, so that sums of taps are exact in float64, in any order, until they are
divided.

Sources: A. Toom (1963), S. Cook (1966); S. Winograd, Arithmetic Complexity of Computations (1980);
A. Lavin and S. Gray, Fast Algorithms for Convolutional Neural Networks (2015).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "KINDS",
    "SCHEMES",
    "Column",
    "Scheme",
    "divided",
    "signed_sum",
    "transform",
]

#: Sums of inputs, as (distance from the first, factor): the input, its difference from and sum with
#: a later one, those of F(4,2) and F(3,3), those of F(4,3). The farthest input is the last.
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
    "f": ((0, 99 / 64), (2, -11 / 16), (1, 9 / 4), (3, -1)),
    "g": ((0, 99 / 64), (2, -11 / 16), (1, -9 / 4), (3, 1)),
    "h": ((0, 363 / 512), (2, -3 / 2), (1, 121 / 256), (3, -1)),
    "i": ((0, 363 / 512), (2, -3 / 2), (1, -121 / 256), (3, 1)),
    "j": ((0, 1089 / 1024), (2, -697 / 256), (4, 1)),
}

#: A sum of inputs: its kind and its first input.
Column = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Scheme:
    """F(outputs, taps). Each is one object, which is a cheap key of a cache.

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

    @property
    def noise(self) -> float:
        """The error of its worst output, where that of one product of a tap is 1.

        A product errs with the size of its two factors, by the model: independent inputs, taps and
        roundings, so squares add up. The plain sum of n taps would have n: each of its products is
        rounded with a sum that is sqrt(n) times as large.
        """
        sizes = []
        for p, (kind, _) in enumerate(self.points):
            weights = self.weights[p if len(self.weights) > 1 else 0]
            divisor = self.divisors[p] if self.divisors else 1
            inputs = sum(factor**2 for _, factor in KINDS[kind])
            sizes.append(inputs * sum(factor**2 for factor in weights) / divisor**2)
        sums = [sum(f**2 * size for f, size in zip(row, sizes, strict=True)) for row in self.result]
        return math.sqrt(max(sums))


def _direct(taps: int) -> Scheme:
    """A product for each tap: nothing is saved."""
    rows = tuple(tuple(float(i == k) for k in range(taps)) for i in range(taps))
    return Scheme(1, taps, tuple(("x", k) for k in range(taps)), rows, ((1,) * taps,))


def _identity(outputs: int) -> Scheme:
    rows = tuple(tuple(int(i == j) for j in range(outputs)) for i in range(outputs))
    return Scheme(outputs, 1, tuple(("x", j) for j in range(outputs)), ((1.0,),), rows)


_FOUR = (("a", 0), ("b", 1), ("e", 1), ("a", 1))
_FIVE = (("p", 0), ("q", 0), ("r", 0), ("s", 0), ("t", 0))
_SIX = (("j", 0), ("f", 1), ("g", 1), ("h", 1), ("i", 1), ("j", 1))

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
    (3, 3): Scheme(
        3,
        3,
        _FIVE,
        ((8, 4, 2), (8, -4, 2), (-32, -40, -50), (-32, 40, -50), (0, 0, 1)),
        (
            (1, 1, 1, 1, 0),
            (1 / 2, -1 / 2, 5 / 4, -5 / 4, 0),
            (1 / 4, 1 / 4, 25 / 16, 25 / 16, 1),
        ),
        (21, 21, 105, 105, 1),
    ),
    (4, 3): Scheme(
        4,
        3,
        _SIX,
        (
            (1024, 0, 0),
            (32768, 22528, 15488),
            (-32768, 22528, -15488),
            (-512, -768, -1152),
            (512, -768, 1152),
            (0, 0, 1),
        ),
        (
            (1, 1, 1, 1, 1, 0),
            (0, 11 / 16, -11 / 16, 3 / 2, -3 / 2, 0),
            (0, 121 / 256, 121 / 256, 9 / 4, 9 / 4, 0),
            (0, 1331 / 4096, -1331 / 4096, 27 / 8, -27 / 8, 1),
        ),
        (1089, 55055, 55055, 4095, 4095, 1),
    ),
}


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
