"""Minimal filtering of one axis whose phases have three to five taps (Toom-Cook).

F(m, r) makes m outputs of a phase with r taps, ``y_j = sum of d_(j+k) g_k`` (d_0 is the input of
the highest tap, which is g_0), out of n = m + r - 1 products ``m_p = u_p g'_p``, by Cook's
construction. Its points are pairs a, -a, then 0 where n is even, then infinity. With M(x) the
product of ``x - p`` over the finite points::

    p = a, -a     u = S + p R     S, R = the sums of q_k d_(k+1) and of q_k d_k
                                  with q_k the coefficients of M(x) / (x^2 - a^2)
                  g' = (sum of p^k g_k) / M'(p)
    p = 0         u = the sum of the coefficients of M(x) / x and d_k,   g' = g_0 / M'(0)
    infinity      u = the sum of the coefficients of M and d_k,          g' = g_(r-1)
    y_j = the sum of p^j m_p, and the product of infinity with the last

The points are those with small errors of many that were tried with float32, among numbers of few
digits: all coefficients are exact in float32, and sums of taps in float64 until they are divided.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from tvmconv.geometry import Axis

__all__ = ["CookScheme", "Phase", "phases", "scheme", "transform"]

#: Pairs of points by the number of products.
_PAIRS = {
    4: (Fraction(1),),
    5: (Fraction(1, 2), Fraction(5, 4)),
    6: (Fraction(5, 8), Fraction(3, 2)),
    7: (Fraction(1, 4), Fraction(7, 8), Fraction(7, 4)),
}
#: Taps of a phase that have a scheme.
_TAPS = (3, 4, 5)

#: A sum of inputs: their numbers and factors.
Sum = tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class CookScheme:
    """F(outputs, taps)."""

    outputs: int
    taps: int

    @property
    def products(self) -> int:
        """Products of a tile, and the inputs that it reads."""
        return self.outputs + self.taps - 1

    @property
    def pairs(self) -> tuple[Fraction, ...]:
        """The points a of the pairs a, -a."""
        return _PAIRS[self.products]

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a point, too."""
        return self.products % 2 == 0

    @property
    def name(self) -> str:
        """As in the literature, ``F(3,5)``."""
        return f"F({self.outputs},{self.taps})"

    @cached_property
    def even(self) -> list[Sum]:
        """R of each pair; S has each input's successor."""
        return [_terms(self._without(pair)) for pair in self.pairs]

    @cached_property
    def alone(self) -> list[Sum]:
        """The sums of the points that are no pair: of 0 where that is one, of infinity."""
        whole = _terms(self._without(None))
        return [tuple((k - 1, factor) for k, factor in whole), whole][not self.has_zero :]

    @cached_property
    def weights(self) -> list[tuple[list[float], int]]:
        """Per product: the factor of each g (g_0 first), and what their sum is divided by."""
        found = []
        for pair in self.pairs:
            for point in (pair, -pair):
                others = [other for other in self._finite if other != point]
                found.append(
                    self._row(
                        point, math.prod((point - other for other in others), start=Fraction(1))
                    )
                )
        if self.has_zero:
            found.append(
                self._row(
                    Fraction(0), math.prod((-a for a in self._finite if a), start=Fraction(1))
                )
            )
        found.append(([float(k == self.taps - 1) for k in range(self.taps)], 1))
        return found

    @property
    def _finite(self) -> list[Fraction]:
        pairs = [point for pair in self.pairs for point in (pair, -pair)]
        return [*pairs, Fraction(0)] if self.has_zero else pairs

    def _without(self, left: Fraction | None) -> list[Fraction]:
        """Coefficients of M, without the factor of one pair."""
        found = [Fraction(0), Fraction(1)] if self.has_zero else [Fraction(1)]
        for pair in self.pairs:
            if pair != left:
                shifted = [Fraction(0), Fraction(0), *found]
                lower = [*found, Fraction(0), Fraction(0)]
                found = [a - pair * pair * b for a, b in zip(shifted, lower, strict=True)]
        return found

    def _row(self, point: Fraction, by: Fraction) -> tuple[list[float], int]:
        """The powers of a point divided by a number: what is exact, and the rest, an odd number."""
        odd = abs(by.numerator)
        while odd % 2 == 0:
            odd //= 2
        return [float(point**k * odd / by) for k in range(self.taps)], odd


def _terms(coefficients: Sequence[Fraction]) -> Sum:
    """Those that are not 0, the highest first: it is 1."""
    found = [(k, float(one)) for k, one in enumerate(coefficients) if one]
    return tuple(reversed(found))


@functools.cache
def scheme(outputs: int, taps: int) -> CookScheme | None:
    """F(outputs, taps); None where there is none."""
    served = taps in _TAPS and outputs > 1 and outputs + taps - 1 in _PAIRS
    return CookScheme(outputs, taps) if served else None


@dataclass(frozen=True)
class Phase:
    """A phase of an axis: its first tap, its first output, and input d_0 of that.

    Its outputs in tile t are ``(t * outputs + j) * stride + place``.
    """

    scheme: CookScheme
    residue: int
    place: int
    start: int


def phases(axis: Axis, outputs: int) -> list[Phase]:
    """All phases of an axis, by their first output; empty where one has no scheme."""
    found = []
    for place in range(axis.stride):
        q, residue = divmod(place + axis.lo, axis.stride)
        taps = -(-(axis.kernel - residue) // axis.stride)
        one = scheme(outputs, taps)
        if one is None or axis.dilation > 1:
            return []
        found.append(Phase(one, residue, place, q - taps + 1))
    return found


def transform(one: CookScheme, taps: np.ndarray, axis: int) -> np.ndarray:
    """The taps of a phase (along ``axis``, lowest first, so g_0 last), transformed."""
    rows = []
    for factors, by in one.weights:
        row = factors[0] * np.take(taps, one.taps - 1, axis)
        for k in range(1, one.taps):
            row = row + factors[k] * np.take(taps, one.taps - 1 - k, axis)
        rows.append(row / by)
    return np.stack(rows, axis)
