"""Where the transformed weights of the Toom-Cook form lie, and how they are made.

One part for each combination of tap numbers in the three axes and each group of channel lanes:
``[phase d][phase h][phase w][block][point d][point h][point w][in channel][lanes]``, which is the
order in which the kernel reads them. An axis with one tap has one point here, since all its
products have the same weights. Where channels are paired (`toom_cook_pairs`), what sums begin at
stands before the channels, these in the order of `Pairing`, and the filters' scales behind all.

Sums of taps are made in float64, along the width, then the height, then the depth, and rounded
once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from tvmconv.compute import cast, point_pairs
from tvmconv.compute.element import storage
from tvmconv.compute.elementary import Formula
from tvmconv.compute.frame import Region, buffer, i64, prim_func
from tvmconv.compute.lanes import Group
from tvmconv.compute.pairing import Pairing
from tvmconv.compute.point_sums import sum_of_taps
from tvmconv.compute.schemes import divided, transform
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.transforms import AxisTiles, PhaseClass
from tvmconv.compute.workload import Workload

__all__ = ["Combination", "PointForm", "combinations", "pack", "packed_size", "packer", "pick"]


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
class PointForm:
    """What the Toom-Cook forms have in common: their combinations and packed weights.

    A form says how its ``axes`` are cut into tiles and its filters into ``groups`` of lanes.
    """

    work: Workload
    tiling: Tiling

    @cached_property
    def axes(self) -> tuple[AxisTiles, AxisTiles, AxisTiles]:
        """The three axes, cut into tiles."""
        raise NotImplementedError  # each form has its own

    @cached_property
    def groups(self) -> list[Group]:
        """The blocks of channel lanes; their weights are placed by `combinations`."""
        raise NotImplementedError  # each form has its own

    @cached_property
    def combinations(self) -> list[Combination]:
        """The phases by their numbers of taps in the three axes."""
        return combinations(self.work, self.axes, self.groups, int(self.pairing is not None))

    @cached_property
    def pairing(self) -> Pairing | None:
        """Which channels are pairs; None: none."""
        return Pairing(self.work.plan.in_channels) if self.tiling.paired else None

    @property
    def layout(self) -> object:
        """What the packed weights look like."""
        paired = ("paired",) if self.tiling.paired else ()
        shape = self.work.plan.kernel_shape
        return (shape, self.tiling.outputs, self.bias_size, *paired, *self.groups)

    def combination(self, classes: Sequence[int]) -> Combination:
        """The combination of one class an axis."""
        counts = tuple(len(axis.classes) for axis in self.axes)
        return self.combinations[int(np.ravel_multi_index(tuple(classes), counts))]

    def packer(self) -> Any:
        """The function that packs the weights."""
        return packer(
            self.work, self.combinations, self.groups, self.bias_size, self.paired,
            together=self.tiling.masked,
        )  # fmt: skip

    def pack(self, kernel: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
        """The same in NumPy, bit for bit."""
        lanes = self.bias_size
        return pack(self.work, self.combinations, self.groups, lanes, kernel, bias, self.paired)

    @cached_property
    def paired(self) -> Paired | None:
        """How the weights are scaled where channels are pairs."""
        if self.pairing is None:
            return None
        size, lanes = packed_size(self.combinations), self.bias_size
        return Paired(self.pairing, size, lanes, point_pairs.growth(self.axes)[1], self.axes)

    @property
    def bias_size(self) -> int:
        """Lanes of all filters."""
        last = self.groups[-1]
        return last.lane_offset + last.blocks * last.lanes

    @cached_property
    def packed_size(self) -> int:
        """Elements of the packed kernel."""
        return packed_size(self.combinations) + (2 * self.bias_size if self.pairing else 0)


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
    plan, dtype = work.plan, work.accumulate_dtype

    def value(element: Any) -> Any:
        return cast.cast(work, element)

    def body() -> None:
        kernel = buffer("kernel", plan.kernel_shape, storage(work.variable_dtype))
        bias = buffer("bias", (plan.filters,), storage(work.variable_dtype))
        size = packed_size(found) + (2 * lanes if paired else 0)
        packed = buffer("packed", (size,), dtype)
        packed_bias = buffer("packed_bias", (lanes,), dtype)
        rounded = Formula(value, storage(work.variable_dtype), (1,))
        taps = T.sblock_alloc_buffer((i64(27),), "float64", scope="local")

        def entry(*index: Any) -> Any:
            return rounded.at(kernel[index], i64(0))

        if paired:
            point_pairs.emit_scales(work, packed, paired.offset, lanes, paired.growth, entry)

        def weight(one: Combination, phase: Any, point: Any, filters: Any, c: Any) -> Any:
            """The weight of a point, in float64."""
            firsts = [
                pick(axis.residues, member) for axis, member in zip(one.classes, phase, strict=True)
            ]
            counts = [axis.scheme.taps for axis in one.classes]
            for k, tap in enumerate(itertools.product(*map(range, counts))):
                where = [
                    first + i64(t * axis.stride)
                    for first, t, axis in zip(firsts, tap, plan.axes, strict=True)
                ]
                T.buffer_store(taps, entry(*where, filters, c).astype("float64"), [i64(k)])
            total = sum_of_taps(one, list(point), taps)
            if paired:
                fractions = [
                    pick(some, p)
                    for some, p in zip(
                        point_pairs.powers_of(paired.axes, one.classes), point, strict=True
                    )
                ]
                total = total * point_pairs.emit_balanced(sum(fractions[1:], fractions[0]))
            return total

        shared = together and paired is None
        if shared:
            with T.serial(i64(0), i64(size)) as at:
                T.buffer_store(packed, tirx.const(0, dtype), [at])
            for one in found:
                _pack_together(one, cut, packed, partial(weight, one))
        for one, (number, group) in itertools.product([] if shared else found, enumerate(cut)):
            region = one.weights(packed, number)

            def known(
                place: Sequence[Any], c: Any, lane: Any, one: Combination = one,
                group: Group = group,
            ) -> Any:  # fmt: skip
                """The weight of a point; 0 where there is no such filter."""
                channel = i64(group.first) + place[3] * i64(group.lanes) + lane
                filters = tirx.min(channel, i64(plan.filters - 1))
                total = weight(one, place[:3], place[4:7], filters, c)
                inside = channel < i64(plan.filters)
                return tirx.Select(inside, total, tirx.const(0, "float64"))

            if paired is None or group.dots:
                with T.grid(*map(i64, region.shape)) as (*place, c, lane):
                    some = known(place, c, lane)
                    if paired is not None:
                        number_of_lane = i64(group.lane_offset) + place[3]
                        factor = packed[i64(paired.offset + paired.lanes) + number_of_lane]
                        some = some * factor.astype("float64")
                    region.store(some.astype(dtype), *place, c, lane)
                continue
            with T.grid(*map(i64, (*region.shape[:-2], group.lanes))) as (*place, lane):
                number_of_lane = i64(group.lane_offset) + place[3] * i64(group.lanes) + lane
                factor = packed[i64(paired.offset + paired.lanes) + number_of_lane]
                point_pairs.emit_points(
                    paired.pairing, region, place, lane, factor,
                    lambda c, place=place, lane=lane: known(place, c, lane),  # type: ignore[misc]
                )  # fmt: skip
        with T.serial(i64(0), i64(lanes)) as lane:
            element = tirx.const(0, dtype)
            if work.use_bias:
                stored = bias[tirx.min(lane, i64(plan.filters - 1))]
                inside = lane < i64(plan.filters)
                element = tirx.Select(inside, rounded.at(stored, i64(0)), element)
            T.buffer_store(packed_bias, element, [lane])

    return prim_func("pack", body)


def _pack_together(
    one: Combination, cut: Sequence[Group], packed: Any, weight: Callable[..., Any]
) -> None:
    """Pack the weights of all groups of a combination, without lanes that have no filter."""
    sizes = [region[1] for region in one.regions]
    with T.serial(i64(0), i64(len(cut))) as number:

        def of(values: Sequence[int]) -> Any:
            return pick(values, number)

        blocks, lanes = of([group.blocks for group in cut]), of([group.lanes for group in cut])
        filters = of([group.valid for group in cut])
        extents = (
            *map(i64, sizes[0][:3]), blocks, *map(i64, sizes[0][4:7]), filters, i64(sizes[0][7])
        )  # fmt: skip
        with T.grid(*extents) as (*place, lane, c):
            channel = of([group.first for group in cut]) + place[3] * lanes + lane
            at = i64(0)
            for index, extent in zip((*place, c), (*extents[:-2], extents[-1]), strict=True):
                at = at * extent + index
            value = weight(place[:3], place[4:7], channel, c)
            start = of([offset for offset, _ in one.regions])
            T.buffer_store(packed, value.astype(str(packed.dtype)), [start + at * lanes + lane])
