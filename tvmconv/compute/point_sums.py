"""The weights of the Toom-Cook form's points, as expressions of the taps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvm import tirx

from tvmconv.compute.frame import i64

if TYPE_CHECKING:
    from tvmconv.compute.points import Combination

__all__ = ["sum_of_taps"]


def sum_of_taps(one: Combination, point: list[Any], taps: Any) -> Any:
    """The weights of a point.

    Nested sums over the taps of depth, height and width, highest tap first.
    """
    counts = [axis.scheme.taps for axis in one.classes]

    def nested(axis: int, before: int) -> Any:
        if axis == 3:
            return taps[i64(before)]
        scheme, total = one.classes[axis].scheme, None
        for k in range(scheme.taps):
            inner = nested(axis + 1, before * counts[axis] + scheme.taps - 1 - k)
            factor = _factor([row[k] for row in scheme.weights], point[axis])
            term = inner if factor is None else factor * inner
            total = term if total is None else total + term
        return total

    found = nested(0, 0)
    for axis, p in zip(one.classes, point, strict=True):
        if axis.scheme.divisors:
            found = found / _factor(list(map(float, axis.scheme.divisors)), p)
    return found


def _factor(values: list[float], point: Any) -> Any:
    if len(values) == 1:
        return None
    found = tirx.const(values[-1], "float64")
    for i in reversed(range(len(values) - 1)):
        found = tirx.Select(point == i64(i), tirx.const(values[i], "float64"), found)
    return found
