"""Transformed weights whose channels are paired (`pairing`): scaled filter by filter.

A scale is the same for all points and phases of a filter, a power of two from the mean magnitude of
its taps. Sums of inputs and of taps of one product differ in size, too, by what their scheme
multiplies them with: one has the power of two that the other lacks (`balance`). Behind the packed
weights lie two numbers for each lane: what scales its products back, and what scales its weights. A
filter with an entry that is not finite has NaN for both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, i64
from tvmconv.compute.pairing import Pairing, scale, scales
from tvmconv.compute.schemes import KINDS

if TYPE_CHECKING:
    from tvmconv.compute.transforms import AxisTiles, PhaseClass
    from tvmconv.compute.workload import Workload

__all__ = [
    "balance", "balanced", "emit_balanced", "emit_points", "emit_scales", "filter_scales",
    "finite_scale", "growth", "powers_of", "rounded", "scaled", "scaled_points",
]  # fmt: skip

#: Powers of two are added up in fractions of 1/8.
_FRACTION = 3
#: The least mean that is scaled to 1; the largest finite number.
_LEAST = 2.0**-100
_LARGEST = float(np.finfo(np.float32).max)


def _sizes(axis: AxisTiles) -> list[tuple[str, float, float]]:
    """Of each product along an axis: its kind, and the sizes of its sums of inputs and of taps.

    As powers of two, for independent inputs and taps of size 1.
    """
    found = []
    for group in axis.classes:
        scheme = group.scheme
        for p, (kind, _) in enumerate(scheme.points):
            weights = scheme.weights[p if len(scheme.weights) > 1 else 0]
            divisor = scheme.divisors[p] if scheme.divisors else 1
            inputs = sum(factor**2 for _, factor in KINDS[kind])
            taps = sum(factor**2 for factor in weights) / divisor**2
            found += [(kind, math.log2(inputs) / 2, math.log2(taps) / 2)] * len(group.places)
    return found


@functools.cache
def balance(axis: AxisTiles) -> dict[str, int]:
    """By which power of two sums of inputs of a kind are multiplied, and their weights divided.

    In fractions, which the axes add up before they are rounded (`rounded`).
    """
    sizes = _sizes(axis)
    found = {}
    for kind in {kind for kind, *_ in sizes}:
        some = [(taps - inputs) / 2 for other, inputs, taps in sizes if other == kind]
        found[kind] = round((sum(some) / len(some)) * 2**_FRACTION)
    return found


def rounded(fractions: int) -> int:
    """The power of two of so many fractions."""
    return (fractions + 2 ** (_FRACTION - 1)) >> _FRACTION


def powers_of(axes: Sequence[AxisTiles], classes: Sequence[PhaseClass]) -> list[list[int]]:
    """The fractions of each point, axis by axis."""
    found = []
    for axis, group in zip(axes, classes, strict=True):
        fractions = balance(axis)
        kinds = [kind for kind, _ in group.scheme.points][: len(group.scheme.weights)]
        found.append([fractions[kind] for kind in kinds])
    return found


def balanced(axes: Sequence[AxisTiles], classes: Sequence[PhaseClass]) -> np.ndarray:
    """What the weights of each point are multiplied with."""
    depth, height, width = (np.array(some) for some in powers_of(axes, classes))
    total = depth[:, None, None] + height[:, None] + width
    return 2.0 ** -((total + 2 ** (_FRACTION - 1)) >> _FRACTION).astype(np.float64)


def emit_balanced(fractions: Any) -> Any:
    """The same of one point, in float64, whose fractions add up to an expression."""
    half, shift = i64(2 ** (_FRACTION - 1)), i64(_FRACTION)
    power = tirx.shift_right(fractions + half, shift)
    return tirx.reinterpret("float64", tirx.shift_left(i64(1023) - power, i64(52)))


def growth(axes: Sequence[AxisTiles]) -> tuple[float, float]:
    """How many times the size of inputs and of taps their sums have, as a mean of all products."""
    totals = [0.0, 0.0]
    for axis in axes:
        powers, sizes = balance(axis), _sizes(axis)
        more = sum(powers[kind] for kind, *_ in sizes) / len(sizes) / 2**_FRACTION
        totals[0] += sum(inputs for _, inputs, _ in sizes) / len(sizes) + more
        totals[1] += sum(taps for *_, taps in sizes) / len(sizes) - more
    return 2.0 ** totals[0], 2.0 ** totals[1]


def finite_scale(mean: Any) -> tuple[Any, Any]:
    """`scale` of a mean that is not tiny, so that no factor times `balance` overflows.

    NaN for both where the mean is not finite. Only inside of a `Formula`.
    """
    nan, zero = (tirx.const(some, "float32") for some in (float("nan"), 0))
    finite = mean <= tirx.const(_LARGEST, "float32")
    factor, inverse = scale(tirx.max(mean, tirx.const(_LEAST, "float32")))
    inverse = tirx.Select(mean > zero, inverse, zero)
    return tirx.Select(finite, factor, nan), tirx.Select(finite, inverse, nan)


def filter_scales(taps: np.ndarray, grown: float, lanes: int) -> tuple[np.ndarray, np.ndarray]:
    """What scales the weights of each lane (Keras' kernel, float64), and the inverse."""
    filters = taps.shape[3]
    flat = np.abs(taps).transpose(3, 0, 1, 2, 4).reshape(filters, -1)
    mean = np.zeros(lanes, np.float32)
    # In order, as the packer does, not by halves.
    mean[:filters] = np.add.accumulate(flat, axis=1)[:, -1] * (grown / flat.shape[1])
    factor, inverse = scales(np.maximum(mean, np.float32(_LEAST)))
    inverse[mean == 0] = 0
    wrong = ~(mean <= _LARGEST)
    factor[wrong] = inverse[wrong] = np.nan
    return factor, inverse


def scaled(weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Sums of taps, scaled."""
    with np.errstate(over="ignore", invalid="ignore"):
        return (weights * factor.astype(np.float64)).astype(np.float32)


def scaled_points(pairing: Pairing, weights: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """What lies in a part: sums of taps (.., channels, lanes), scaled, behind their beginnings."""
    points = scaled(weights, factor)
    with np.errstate(over="ignore", invalid="ignore"):
        begin = np.float32(0) - pairing.excess(points).astype(np.float32)
    return np.concatenate([begin[..., None, :], points[..., pairing.order, :]], axis=-2)


def emit_scales(
    work: Workload, target: Any, offset: int, lanes: int, grown: float,
    element: Callable[..., Any],
) -> None:  # fmt: skip
    """Emit the scales of all lanes; ``element`` is a rounded entry of the kernel."""
    plan = work.plan
    total = T.sblock_alloc_buffer((i64(1),), "float64", scope="local")
    mean = T.sblock_alloc_buffer((i64(1),), "float32", scope="local")
    powers = Formula(finite_scale, "float32", (1,))
    sizes = [*(axis.kernel for axis in plan.axes), plan.in_channels]
    with T.serial(i64(0), i64(lanes)) as lane:
        known = tirx.min(lane, i64(plan.filters - 1))
        T.buffer_store(total, tirx.const(0, "float64"), [i64(0)])
        with T.grid(*map(i64, sizes)) as (a, b, c, channel):
            size = tirx.abs(element(a, b, c, known, channel).astype("float64"))
            T.buffer_store(total, total[i64(0)] + size, [i64(0)])
        value = total[i64(0)] * tirx.const(grown / math.prod(sizes), "float64")
        inside = lane < i64(plan.filters)
        value = tirx.Select(inside, value.astype("float32"), tirx.const(0, "float32"))
        T.buffer_store(mean, value, [i64(0)])
        factor, inverse = powers.at(mean[i64(0)], i64(0))
        T.buffer_store(target, inverse, [i64(offset) + lane])
        T.buffer_store(target, factor, [i64(offset + lanes) + lane])


def emit_points(
    pairing: Pairing, region: Region, indices: Sequence[Any], lane: Any, factor: Any,
    weight: Callable[[Any], Any],
) -> None:  # fmt: skip
    """Emit a point of one lane, ``weight`` of each channel in float64."""
    row = T.sblock_alloc_buffer((i64(pairing.channels),), "float32", scope="local")
    total = T.sblock_alloc_buffer((i64(1),), "float64", scope="local")
    with T.serial(i64(0), i64(pairing.channels)) as c:
        scaled = weight(c) * factor.astype("float64")
        T.buffer_store(row, scaled.astype("float32"), [c])
    T.buffer_store(total, tirx.const(0, "float64"), [i64(0)])
    pairing.emit_excess(total, lambda c: row[c])
    begin = tirx.const(0, "float32") - total[i64(0)].astype("float32")
    region.store(begin, *indices, i64(0), lane)
    steps = pairing.steps
    with T.grid(i64(steps), i64(6)) as (step, stream):
        slot = i64(1) + step * i64(6) + stream
        region.store(row[stream * i64(steps) + step], *indices, slot, lane)
    for c in range(6 * steps, pairing.channels):
        region.store(row[i64(c)], *indices, i64(1 + c), lane)
