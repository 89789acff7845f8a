"""The Toom-Cook rule: where the multiplications saved outweigh the sums that are added.

Strategy
  1. For each number of outputs that a tile may have along each axis, each size of a task and each
     number of axes whose transformed input is shared, add up the cycles by a model of the core:
     register tiles as in the phase rule, sums and copies by measurement, transformed weights by
     the level of memory they come from.
  2. Take the cheapest whose scratch keeps its limit and whose packed weights are at most eight
     times the kernel.
  3. Take the form at all only where the model gives the cheapest direct form clearly more cycles.

Not served, and why: dilation, phases without taps or with more than three (no scheme), layers
where every phase has one tap, or all axes with more have one or two inputs (nothing to save), fewer
than 8 input channels (the error), float64 (who asks for it wants the plain sum), kernels that are
not finite (a sum of taps would spread it). Left to the direct forms by `decide`, though right:
fewer than 16 input channels or 8 filters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.compute.finish import needs_line
from tvmconv.compute.phase import PhaseForm
from tvmconv.compute.points import Combination
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.transforms import KINDS, AxisTiles, Column, outputs_of
from tvmconv.errors import ConfigError
from tvmconv.schedules.cpu import column, dot, voxel
from tvmconv.schedules.cpu.phase import register_tile, tile_cost
from tvmconv.schedules.cpu.phase_cycles import row_cycles

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "MOST_TILES",
    "cycles",
    "decide",
    "pays",
    "refusal",
    "require",
    "vector_lanes",
    "with_layout",
    "within_limits",
]

#: `decide` takes the form where the direct form needs this many times its cycles.
#: And so many times with few filters: the model knows less of registers and lines that outputs do
#: not fill.
_GAIN, _FEW_GAIN = 1.1, 1.2
_LEAST_CHANNELS, _LEAST_FILTERS = 16, 8
#: The sums are as long as the input channels: shorter ones lose less than the transforms add.
_LEAST_INPUTS = 8
_MOST_SCRATCH = 16 << 20
#: Scratch of all tasks together that is nothing beside the tensors (a share of them, or bytes), and
#: how many times the cycles it may cost to stay below.
_SMALL_SHARE, _SMALL_SCRATCH, _SMALL_COST = 0.05, 3.9e6, 1.03
#: How many times the cycles the least scratch may cost where outputs wait in it: all the less of it
#: and of the lines of the outputs leave the core's own cache too early. By measurement.
_WAITING_COST = 1.025
#: Packed weights, in kernels.
_MOST_WEIGHTS = 8.0
#: Cycles a register of channels, by measurement: an input copied, a load, addition or store of a
#: transform, a product read.
_COPY, _STEP, _PRODUCT = 5.0, 0.36, 1.4
#: The same for an output stored, and more where it may lie over the end.
_STORE, _BRANCH = 1.0, 5.0
#: The same of registers of half a line: three loads and two stores a cycle, not two and one.
_SHORT_BYTES, _SHORT = 32, 0.6
#: Share of a stream's cycles that does not hide behind the register tiles.
_HIDDEN = 0.2
#: The same for the weights, if they are more bytes than any core's own cache holds.
_SHOWN, _MANY_WEIGHTS = 0.35, 4 << 20
#: Cycles to begin and end a register tile, besides its stores.
_TILE = 12.0
#: Bytes a cycle from the caches beyond the core's own and from memory, and what the former hold.
_NEAR_BYTES, _FAR_BYTES = 16.0, 4.0
_SHARED_CACHE = 16 << 20
#: Share of the cycles that a phase kernel spends outside of its register tiles.
_PHASE_OVERHEAD = 1.06
#: Most filters whose lanes are input channels, and the cycles to add up the lanes of one register.
_MOST_DOTS = 4
_TOTAL = 3.5
#: Tiles of a task.
MOST_TILES = 128
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


@dataclass(frozen=True)
class _Candidate:
    """A tiling, its cycles and the bytes of a task's scratch."""

    cycles: float
    tiling: Tiling
    scratch: int


def refusal(work: Workload, *, exact: bool = False) -> str | None:
    """Why a workload cannot take this form; None if it can."""
    if work.accumulate_dtype == "float64":
        return "it is for float32, float16 and bfloat16"
    if work.empty or 0 in work.plan.input_shape[1:]:
        return "the layer has nothing to compute on this shape"
    if any(axis.dilation > 1 for axis in work.plan.axes):
        return "it has no scheme for a dilation above 1"
    if not all(outputs_of(axis) for axis in work.plan.axes):
        return "it needs one to three taps in every phase (kernel size / stride)"
    if all(axis.max_taps == 1 for axis in work.plan.axes):
        return "every phase has one tap: there is no multiplication to save"
    if all(outputs_of(axis) == (1,) for axis in work.plan.axes):
        return "no axis with phases of several taps has over two inputs"
    if work.plan.in_channels < _LEAST_INPUTS:
        return f"below {_LEAST_INPUTS} input channels its roundings would exceed the direct form's"
    if exact:
        return "the kernel has entries that are not finite"
    return None


def require(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling:
    """The cheapest tiling of this form, whatever other forms would cost.

    Raises
    ------
    ConfigError
        The form does not serve the workload.
    """
    reason = refusal(work, exact=exact)
    best = None if reason else _best(work, target)
    if best is None:
        reason = reason or "no tiling keeps scratch and packed weights within their limits"
        raise ConfigError(f"algorithm='toom-cook' does not serve this layer: {reason}")
    return best.tiling


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling | None:
    """The cheapest tiling where it is clearly cheaper than the direct forms; else None."""
    plan = work.plan
    if plan.in_channels < _LEAST_CHANNELS or plan.filters < _LEAST_FILTERS:
        return None
    if refusal(work, exact=exact):
        return None
    best = _best(work, target)
    if best is None or _direct_cycles(work, target) < _gain(work) * best.cycles:
        return None
    return best.tiling


def _gain(work: Workload) -> float:
    return _GAIN if work.plan.filters >= _LEAST_CHANNELS else _FEW_GAIN


def pays(works: Sequence[Workload], tilings: Sequence[Tiling], target: CpuTarget) -> bool:
    """Whether a sample of each shape together is clearly cheaper than in the direct forms."""
    direct = sum(_direct_cycles(work, target) for work in works)
    pairs = zip(works, tilings, strict=True)
    ours = sum(cycles(ToomCookForm(work, tiling), target) for work, tiling in pairs)
    return direct >= _gain(works[0]) * ours


def with_layout(layout: Tiling, work: Workload, target: CpuTarget) -> Tiling | None:
    """The cheapest tiling of another shape or target that shares packed weights with ``layout``."""
    best = _best(work, target, layout)
    return None if best is None else best.tiling


def _best(work: Workload, target: CpuTarget, layout: Tiling | None = None) -> _Candidate | None:
    """The cheapest tiling; a little dearer one where that keeps the memory of a call small."""
    found = list(_candidates(work, target, layout))
    best = min(found, key=lambda one: one.cycles, default=None)
    if best is None:
        return None
    if ToomCookForm(work, best.tiling).waits:
        near = [one for one in found if one.cycles <= _WAITING_COST * best.cycles]
        return min(near, key=lambda one: (one.scratch, one.cycles))
    plan = work.plan
    tensors = [plan.input_shape[1:], plan.output_shape[1:], plan.kernel_shape]
    small = max(_SMALL_SHARE * 4 * sum(map(math.prod, tensors)), _SMALL_SCRATCH) / target.cores
    few = [one for one in found if one.scratch <= small and one.cycles <= _SMALL_COST * best.cycles]
    return min(few, key=lambda one: one.cycles, default=best)


def vector_lanes(work: Workload, target: CpuTarget) -> int:
    """Lanes of a register: fewer than the target's where filters are few."""
    vector = max(1, target.vector_bits // 32)
    while vector > 4 and vector // 2 >= work.plan.filters:
        vector //= 2
    return vector


def _candidates(work: Workload, target: CpuTarget, layout: Tiling | None) -> Iterator[_Candidate]:
    axes = work.plan.axes
    vector = layout.vector if layout else vector_lanes(work, target)
    depth, height, width = map(outputs_of, axes)
    choices = [layout.outputs] if layout else itertools.product(depth, height, width)
    if layout and layout.dots > vector:
        return
    every = [layout.dots] if layout else _dots(work, vector)
    for outputs, dots in itertools.product(choices, every):
        counts = [AxisTiles(a, m, 1, True).tiles for a, m in zip(axes, outputs, strict=True)]
        for registers, most in _register_tiles(work, target, layout, counts[2], dots):
            for block, shared in itertools.product(_blocks(work, counts, most), range(4)):
                tiling = Tiling(
                    "toom-cook", vector, registers, most, 1, outputs=outputs, block=block,
                    shared=shared, last=layout.last if layout else 0, dots=dots,
                )  # fmt: skip
                form = ToomCookForm(work, tiling)
                if not _few_weights(form):
                    break
                if within_limits(form):
                    yield _Candidate(cycles(form, target), tiling, form.offsets[-1] * 4)


def _register_tiles(
    work: Workload, target: CpuTarget, layout: Tiling | None, tiles: int, dots: int
) -> Iterator[tuple[int, int]]:
    """Registers and tiles of a register tile worth a look.

    Where outputs wait in scratch, half the registers, too: half the products then stand beside
    them.
    """
    filters, only = work.plan.filters - dots, layout.registers if layout else None
    vector = layout.vector if layout else vector_lanes(work, target)
    tile = register_tile(filters, [tiles], vector, target.vector_registers, only)
    yield tile.registers, tile.width
    if work.plan.channels_first and not layout and tile.registers % 2 == 0:
        half = tile.registers // 2
        tile = register_tile(filters, [tiles], vector, target.vector_registers, half)
        yield tile.registers, tile.width


def _dots(work: Workload, vector: int) -> list[int]:
    """How many of the last filters may have input channels as lanes."""
    rest = work.plan.filters % vector
    few = 0 < rest <= min(_MOST_DOTS, vector) and vector < work.plan.filters
    return [0, rest] if few and work.plan.in_channels % vector == 0 else [0]


def within_limits(form: ToomCookForm) -> bool:
    """Whether packed weights and scratch are small enough."""
    return form.offsets[-1] * 4 <= _MOST_SCRATCH and _few_weights(form)


def _few_weights(form: ToomCookForm) -> bool:
    lanes = sum(group.blocks * group.lanes for group in form.groups)
    # Padded lanes are not the algorithm's: they count once on either side.
    padded = math.prod(form.work.plan.kernel_shape) * max(1.0, lanes / form.work.plan.filters)
    return form.packed_size <= _MOST_WEIGHTS * padded


def _blocks(work: Workload, counts: list[int], width: int) -> Iterator[tuple[int, int, int]]:
    """Sizes of a task worth a look, in tiles; along the width, cut between register tiles."""
    depth, height, row = counts
    widths = {row}
    if not needs_line(work):
        parts = -(-row // width)
        widths |= {width * n for n in (1, 2, 4) if n < parts}
    for w in sorted(widths):
        for h in sorted({min(height, -(-height // n)) for n in (1, 2, 3, 4, 6, 8, 16, 32)}):
            for d in sorted({1, 2, 4, depth} if depth <= 4 else {1, 2, 4}):
                smallest = h == d == 1 and w == min(widths)
                if d <= depth and (d * h * w <= MOST_TILES or smallest):
                    yield d, h, w


def cycles(form: ToomCookForm, target: CpuTarget) -> float:
    """Cycles of a sample on one core, by the model; uneven shares of the cores count as work."""
    work, tiling = form.work, form.tiling
    depth, height, width = form.axes
    vectors = form.channels // tiling.vector
    blocks = depth.blocks * height.blocks * width.blocks
    tiles = depth.tiles * height.tiles * width.tiles
    moved = _COPY * blocks * math.prod(form.inputs_shape[:3]) * vectors
    around = math.prod(1 + axis.halo / axis.block for axis in form.axes)
    moved += _STEP * _sum_steps(form) * tiles * around * vectors
    steps = reads = 0.0
    partial = any(axis.axis.out % axis.span for axis in form.axes)
    store = _STORE + (_BRANCH if partial else 0.0)
    sizes = [
        (1, 1) if group.dots else (group.blocks, group.lanes // tiling.vector)
        for group in form.groups
    ]
    row = cut(width.tiles, tiling.width)
    if width.blocks > 1:
        row = [(-(-width.tiles // tiling.width), tiling.width)]
    for one in form.combinations:
        phases = math.prod(len(group.places) for group in one.classes)
        rows = phases * depth.tiles * height.tiles
        made = math.prod(group.scheme.outputs for group in one.classes)
        back = one.points * _PRODUCT + made * store + _STEP * _back_steps(one)
        for lanes, (count, registers) in zip(form.groups, sizes, strict=True):
            for parts, w in row:
                step = work.plan.in_channels * tile_cost(w, registers) + _TILE + w * registers / 2
                if lanes.dots:
                    step = _TILE + w * (vectors * (lanes.blocks + 1) / 2 + _TOTAL * lanes.blocks)
                steps += rows * one.points * count * parts * step
            moved += rows * width.tiles * count * registers * back
            reads += rows * width.tiles * one.points * count * form.channels * 4
    if tiling.vector * 4 <= _SHORT_BYTES:
        moved *= _SHORT
    full = form.offsets[-1] * 4 / (0.75 * target.l2_bytes)
    if full > 1:
        moved *= 1.1 + 0.15 * math.log2(full)
        moved += _HIDDEN * reads / _NEAR_BYTES
    weights = form.packed_size * 4
    stream = _stream(weights) * blocks
    shown = _HIDDEN if weights <= _MANY_WEIGHTS else _SHOWN
    total = max(steps + shown * stream, stream) + moved
    tasks = blocks * max(1, work.plan.batch)
    uneven = -(-tasks // target.cores) * target.cores / tasks
    return total * (uneven + _UNEVEN * target.cores / tasks)


def _sum_steps(form: ToomCookForm) -> float:
    """Loads, additions and stores of all transforms of a tile, for one register of channels."""
    total = 0.0
    choices: list[list[tuple[int, tuple[Column, ...]]]] = [
        [(1, axis.columns)]
        if axis.shared
        else [(len(one.places), one.scheme.points) for one in axis.classes]
        for axis in form.axes
    ]
    for parts in itertools.product(*choices):
        times = math.prod(count for count, _ in parts)
        depth, height, width = (columns for _, columns in parts)
        reach = [
            max(offset + KINDS[kind][-1][0] for kind, offset in columns) + 1
            for columns in (height, width)
        ]
        terms = [sum(len(KINDS[kind]) for kind, _ in columns) for columns in (depth, height, width)]
        steps = (2 * terms[0] - len(depth)) * reach[0] * reach[1]
        steps += len(depth) * (terms[1] - len(height)) * reach[1]
        steps += len(depth) * len(height) * terms[2]
        total += times * steps
    return total


def _back_steps(one: Combination) -> float:
    """The same for the products of a tile, transformed back."""
    depth, height, width = (group.scheme for group in one.classes)
    terms = [sum(map(abs, itertools.chain(*s.result))) for s in (depth, height, width)]
    across = len(height.points) * len(width.points)
    steps = (2 * terms[0] - depth.outputs) * across
    steps += depth.outputs * (terms[1] - height.outputs) * len(width.points)
    return steps + depth.outputs * height.outputs * (terms[2] + width.outputs)


def _stream(size: int) -> float:
    """Cycles to bring so many bytes of weights to a core."""
    return size / (_NEAR_BYTES if size <= _SHARED_CACHE else _FAR_BYTES)


def _direct_cycles(work: Workload, target: CpuTarget) -> float:
    """Cycles of a sample in the cheapest direct form."""
    dots = dot.decide(work, target)
    if dots is not None:
        return dot.cycles(work, target, dots)
    columns = column.decide(work, target)
    if columns is not None:
        return column.cycles(work, target, columns)
    if voxel.decide(work, target) is not None:
        return voxel.sample_cycles(work, target)
    return _phase_cycles(work, target)


def _phase_cycles(work: Workload, target: CpuTarget) -> float:
    """Cycles of a sample in the phase form."""
    depth, height, width = work.plan.axes
    vector = vector_lanes(work, target)
    counts = [phase.count for phase in width.phases]
    tile = register_tile(work.plan.filters, counts, vector, target.vector_registers)
    form = PhaseForm(work, Tiling("phase", vector, tile.registers, tile.width, 1))
    rows = depth.useful_taps * height.useful_taps
    steps = row_cycles(form) * rows * work.plan.in_channels * _PHASE_OVERHEAD
    size = math.prod(work.plan.kernel_shape) * 4
    return max(steps, _stream(size))
