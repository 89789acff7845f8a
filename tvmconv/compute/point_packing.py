"""How the weights of the Toom-Cook form are made: sums of taps, in the order of `points`.

Sums are made in float64, along the width, then the height, then the depth, and rounded once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast, point_pairs
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, buffer, i64, prim_func
from tvmconv.compute.lanes import Group
from tvmconv.compute.point_sums import sum_of_taps
from tvmconv.compute.points import Combination, Paired, packed_size, pick
from tvmconv.compute.schemes import divided, transform
from tvmconv.compute.workload import Workload

__all__ = ["pack", "packer"]


def pack(
    work: Workload,
    found: Sequence[Combination],
    cut: Sequence[Group],
    lanes: int,
    kernel: np.ndarray,
    bias: np.ndarray | None,
    paired: Paired | None = None,
) -> np.ndarray:
    """What `packer` does, in NumPy; ``lanes`` of bias.

    Returns
    -------
    numpy.ndarray
        One-dimensional, of the accumulation dtype: the packed kernel, then the packed bias.
    """
    dtype = np.dtype(work.accumulate_dtype)
    size = packed_size(found) + (2 * lanes if paired else 0)
    packed = np.zeros(size + lanes, dtype)
    with np.errstate(over="ignore"):
        taps, start = cast.cast_arrays(work, kernel, bias)
        taps = taps.astype(np.float64)
        packed[size : size + work.plan.filters] = start
        factors = np.ones(lanes, dtype)
        if paired:
            factors, inverses = point_pairs.filter_scales(taps, paired.growth, lanes)
            packed[paired.offset : size] = np.concatenate([inverses, factors])
        for one in found:
            residues = [list(group.residues) for group in one.classes]
            for place in itertools.product(*(range(len(r)) for r in residues)):
                part = taps
                for axis, (r, member) in enumerate(zip(residues, place, strict=True)):
                    stride = work.plan.axes[axis].stride
                    part = part[(slice(None),) * axis + (slice(r[member], None, stride),)]
                for axis in (2, 1, 0):
                    part = transform(one.classes[axis].scheme, part, axis)
                for axis in range(3):
                    part = divided(one.classes[axis].scheme, part, axis)
                if paired:
                    powers = point_pairs.balanced(paired.axes, one.classes)
                    part = part * powers[..., None, None]
                for number, group in enumerate(cut):
                    offset, shape = one.regions[number]
                    target = packed[offset : offset + math.prod(shape)].reshape(shape)
                    count = group.blocks * group.lanes
                    padded = np.zeros((*part.shape[:3], count, part.shape[4]), part.dtype)
                    some = part[..., group.first : group.first + count, :]
                    padded[..., : some.shape[3], :] = some
                    blocked = padded.reshape(*part.shape[:3], group.blocks, group.lanes, -1)
                    blocked = blocked.transpose(3, 0, 1, 2, 5, 4)
                    if paired:
                        factor = factors[group.lane_offset :][:count]
                        factor = factor.reshape(group.blocks, 1, 1, 1, 1, group.lanes)
                        if group.dots:
                            blocked = point_pairs.scaled(blocked, factor)
                        else:
                            blocked = point_pairs.scaled_points(paired.pairing, blocked, factor)
                    target[place] = blocked
    return packed


def packer(
    work: Workload,
    found: Sequence[Combination],
    cut: Sequence[Group],
    lanes: int,
    paired: Paired | None = None,
    *,
    together: bool = False,
) -> Any:
    """The function that packs Keras' kernel and bias (variable dtype); ``lanes`` of the latter.

    Weights are rounded to the compute dtype first, as Keras casts them. Where ``together``, one
    code packs all groups, and lanes without filters before: a third to a half of the bytes.
    """

    def body() -> None:
        stored, dtype = storage(work.variable_dtype), work.accumulate_dtype
        kernel = buffer("kernel", work.plan.kernel_shape, stored)
        bias = buffer("bias", (work.plan.filters,), stored)
        packed = buffer("packed", (packed_size(found) + (2 * lanes if paired else 0),), dtype)
        packed_bias = buffer("packed_bias", (lanes,), dtype)
        packing = _Packing(work, paired, kernel, packed)
        if paired:
            point_pairs.emit_scales(
                work, packed, paired.offset, lanes, paired.growth, packing.element
            )
        if together and paired is None:
            packing.emit_together(found, cut)
        else:
            for one, (number, group) in itertools.product(found, enumerate(cut)):
                packing.emit(one, group, one.weights(packed, number))
        with T.serial(i64(0), i64(lanes)) as lane:
            element = tirx.const(0, dtype)
            if work.use_bias:
                stored_one = bias[tirx.min(lane, i64(work.plan.filters - 1))]
                inside = lane < i64(work.plan.filters)
                element = tirx.Select(inside, packing.rounded.at(stored_one, i64(0)), element)
            T.buffer_store(packed_bias, element, [lane])

    return prim_func("pack", body)


class _Packing:
    """A packer that is being emitted: from ``kernel`` to ``packed``."""

    def __init__(self, work: Workload, paired: Paired | None, kernel: Any, packed: Any) -> None:
        self.plan, self.paired, self._kernel, self._packed = work.plan, paired, kernel, packed
        self.rounded = Formula(partial(cast.cast, work), storage(work.variable_dtype), (1,))
        self._taps = T.sblock_alloc_buffer((i64(27),), "float64", scope="local")

    def element(self, *index: Any) -> Any:
        """An element of the kernel, rounded to the compute dtype."""
        return self.rounded.at(self._kernel[index], i64(0))

    def _weight(self, one: Combination, phase: Any, point: Any, filters: Any, c: Any) -> Any:
        """The weight of a point, in float64."""
        axes = self.plan.axes
        firsts = [
            pick(axis.residues, member) for axis, member in zip(one.classes, phase, strict=True)
        ]
        counts = [axis.scheme.taps for axis in one.classes]
        for k, tap in enumerate(itertools.product(*map(range, counts))):
            where = [
                first + i64(t * axis.stride)
                for first, t, axis in zip(firsts, tap, axes, strict=True)
            ]
            T.buffer_store(self._taps, self.element(*where, filters, c).astype("float64"), [i64(k)])
        total = sum_of_taps(one, list(point), self._taps)
        if self.paired:
            powers = point_pairs.powers_of(self.paired.axes, one.classes)
            fractions = [pick(some, p) for some, p in zip(powers, point, strict=True)]
            total = total * point_pairs.emit_balanced(sum(fractions[1:], fractions[0]))
        return total

    def emit(self, one: Combination, group: Group, region: Region) -> None:
        """Pack the weights of a group of lanes, 0 where there is no such filter."""
        filters, paired = self.plan.filters, self.paired

        def weight(place: Sequence[Any], c: Any, lane: Any) -> Any:
            channel = i64(group.first) + place[3] * i64(group.lanes) + lane
            known = tirx.min(channel, i64(filters - 1))
            total = self._weight(one, place[:3], place[4:7], known, c)
            return tirx.Select(channel < i64(filters), total, tirx.const(0, "float64"))

        def factor(number: Any) -> Any:
            assert paired is not None
            return self._packed[i64(paired.offset + paired.lanes) + number]

        if paired is None or group.dots:
            with T.grid(*map(i64, region.shape)) as (*place, c, lane):
                some = weight(place, c, lane)
                if paired is not None:
                    some = some * factor(i64(group.lane_offset) + place[3]).astype("float64")
                region.store(some.astype(str(self._packed.dtype)), *place, c, lane)
            return
        with T.grid(*map(i64, (*region.shape[:-2], group.lanes))) as (*place, lane):
            number = i64(group.lane_offset) + place[3] * i64(group.lanes) + lane
            point_pairs.emit_points(
                paired.pairing, region, place, lane, factor(number),
                lambda c: weight(place, c, lane),
            )  # fmt: skip

    def emit_together(self, found: Sequence[Combination], cut: Sequence[Group]) -> None:
        """Pack the weights of all groups in one code, not lanes that have no filter."""
        packed = self._packed
        with T.serial(i64(0), packed.shape[0]) as at:
            T.buffer_store(packed, tirx.const(0, str(packed.dtype)), [at])
        for one in found:
            sizes = [region[1] for region in one.regions]
            with T.serial(i64(0), i64(len(cut))) as number:
                blocks = pick([group.blocks for group in cut], number)
                lanes = pick([group.lanes for group in cut], number)
                filters = pick([group.valid for group in cut], number)
                extents = (
                    *map(i64, sizes[0][:3]), blocks, *map(i64, sizes[0][4:7]), filters,
                    i64(sizes[0][7]),
                )  # fmt: skip
                with T.grid(*extents) as (*place, lane, c):
                    channel = pick([group.first for group in cut], number) + place[3] * lanes + lane
                    at = i64(0)
                    inner = (*place, c)
                    for index, extent in zip(inner, (*extents[:-2], extents[-1]), strict=True):
                        at = at * extent + index
                    value = self._weight(one, place[:3], place[4:7], channel, c)
                    start = pick([offset for offset, _ in one.regions], number)
                    T.buffer_store(
                        packed, value.astype(str(packed.dtype)), [start + at * lanes + lane]
                    )
