"""The last tile of an axis, of which only the first outputs exist: fewer products make them.

The first v outputs of F(m, r) read v + r - 1 inputs. Those behind them reach no output that exists,
so they may be any numbers. They are *made up* from the inputs before them, such that the sums of
inputs at some points are 0 whatever the inputs are. As many products are left as F(v, r) takes, and
the weights stay what they are. One output of F(4,2): with ``d2 = 25/16 d0`` and ``d3 = 25/16 d1``
the sums at 1/2 and -1/2 are 0, and two products of five are left.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache

from tvmconv.compute.schemes import KINDS, Scheme

__all__ = ["Remainder", "remainder", "used"]


@dataclass(frozen=True)
class Remainder:
    """How the first outputs of a tile are made.

    Attributes
    ----------
    points : tuple of int
        The products that are left. The sums of inputs of the others are 0.
    inputs : int
        The inputs that the outputs read.
    made : tuple of tuple of float
        Per input behind these, the factors of these.
    noise : float
        The error of its worst output by the model: see `Scheme.noise`.
    """

    points: tuple[int, ...]
    inputs: int
    made: tuple[tuple[float, ...], ...]
    noise: float


def used(scheme: Scheme, outputs: int) -> list[int]:
    """The products that the first outputs of a scheme are sums of."""
    rows = scheme.result[:outputs]
    return [p for p in range(len(scheme.points)) if any(row[p] for row in rows)]


@cache
def remainder(scheme: Scheme, outputs: int) -> Remainder | None:
    """How the first outputs of a tile take fewer products; None where they do not.

    Of all choices of points that with the smallest factors, which errs no more than the scheme.
    """
    some, inputs = used(scheme, outputs), scheme.taps + outputs - 1
    if not 0 < outputs < scheme.outputs or len(some) <= inputs:
        return None
    found = []
    for points in itertools.combinations(some, inputs):
        made = _made(scheme, [p for p in some if p not in points], inputs)
        if made is None:
            continue
        noise, steps = (_noise(scheme, outputs, points, made, merged) for merged in (True, False))
        if noise <= scheme.noise:
            factors = tuple(tuple(map(float, row)) for row in made)
            found.append((noise * steps, Remainder(points, inputs, factors, noise)))
    return min(found, key=lambda one: one[0], default=(0.0, None))[1]


def _rows(scheme: Scheme) -> list[list[Fraction]]:
    """Per product, the factor of each input of a tile."""
    size = scheme.outputs + scheme.taps - 1
    rows = [[Fraction(0)] * size for _ in scheme.points]
    for row, (kind, offset) in zip(rows, scheme.points, strict=True):
        for step, factor in KINDS[kind]:
            row[offset + step] = Fraction(factor)
    return rows


def _made(scheme: Scheme, dropped: Sequence[int], inputs: int) -> list[list[Fraction]] | None:
    """The inputs behind the first ones for which the sums at some points are 0."""
    rows = _rows(scheme)
    system = [[*rows[p][inputs:], *(-f for f in rows[p][:inputs])] for p in dropped]
    unknown = scheme.outputs + scheme.taps - 1 - inputs
    pivots: list[int] = []
    for column in range(unknown):
        rest = range(len(pivots), len(system))
        at = next((i for i in rest if system[i][column]), None)
        if at is None:
            continue
        k = len(pivots)
        system[k], system[at] = system[at], system[k]
        system[k] = [f / system[k][column] for f in system[k]]
        for i, row in enumerate(system):
            if i != k and row[column]:
                system[i] = [f - row[column] * g for f, g in zip(row, system[k], strict=True)]
        pivots.append(column)
    if any(any(row) for row in system[len(pivots) :]):
        return None
    made = [[Fraction(0)] * inputs for _ in range(unknown)]
    for row, column in zip(system, pivots, strict=False):
        made[column] = row[unknown:]
    # Some denominators have a factor beside 2: such made inputs would not make the sums 0.
    if any(f.denominator & (f.denominator - 1) for row in made for f in row):
        return None
    return made


def _noise(
    scheme: Scheme, outputs: int, points: Sequence[int], made: list[list[Fraction]], merged: bool
) -> float:
    """`Scheme.noise` of the first outputs; not ``merged``: inputs that are made up count apart."""
    rows, sizes = _rows(scheme), {}
    for p in points:
        inputs = len(made[0])
        parts = [[f * g for g in row] for f, row in zip(rows[p][inputs:], made, strict=True)]
        parts.append(rows[p][:inputs])
        if merged:
            parts = [[sum(column, Fraction(0)) for column in zip(*parts, strict=True)]]
        weights = scheme.weights[p if len(scheme.weights) > 1 else 0]
        divisor = scheme.divisors[p] if scheme.divisors else 1
        size = float(sum(f * f for part in parts for f in part))
        sizes[p] = size * sum(factor**2 for factor in weights) / divisor**2
    worst = max(
        sum(row[p] ** 2 * size for p, size in sizes.items()) for row in scheme.result[:outputs]
    )
    return math.sqrt(worst)
