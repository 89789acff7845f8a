"""The Toom-Cook rule: where the multiplications saved outweigh the sums that are added.

Strategy
  1. For each number of outputs that a tile may have along each axis, each size of a task and each
     number of axes whose transformed input is shared, add up the cycles by a model of the core:
     register tiles as in the phase rule, sums and copies by measurement, transformed weights by
     the level of memory they come from.
  2. Take the cheapest whose scratch keeps its limit and whose packed weights are at most eight
     times the kernel.
  3. Take the form at all only where the model gives the cheapest direct form more cycles.

Not served, and why: dilation, phases without taps or with more than three (but see
`toom_cook_dot`), layers where every phase has one tap, or all axes with more have one or two inputs
(nothing to save), fewer than 8 input channels (the error), float64 (who asks for it wants the plain
sum), kernels that are not finite (a sum of taps would spread it). Left to the direct forms by
`decide`, though right: below 8 filters all but `toom_cook_voxel` and `toom_cook_dot`.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.finish import needs_line
from tvmconv.compute.frame import LINE_BYTES
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.toom_cook import ToomCookForm
from tvmconv.compute.toom_cook_dots import ToomCookDotForm
from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm
from tvmconv.compute.transforms import AxisTiles, outputs_of, tile_outputs
from tvmconv.errors import ConfigError
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu import direct, toom_cook_dot, toom_cook_pair, toom_cook_voxel
from tvmconv.schedules.cpu.candidate import Candidate
from tvmconv.schedules.cpu.direct import vector_lanes
from tvmconv.schedules.cpu.pace import of_widest
from tvmconv.schedules.cpu.phase import register_tile
from tvmconv.schedules.cpu.toom_cook_cycles import cycles, is_short
from tvmconv.schedules.cpu.toom_cook_scratch import with_less
from tvmconv.schedules.cpu.toom_cook_steps import code_bytes
from tvmconv.schedules.cpu.toom_cook_voxel import MOST_SCRATCH, MOST_WEIGHTS
from tvmconv.schedules.cpu.toom_cook_waiting import leaving, waiting
from tvmconv.schedules.cpu.traits import adders_apart, compacts, stores_lanes, traits

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "MOST_TILES",
    "decide",
    "far_inputs",
    "masks",
    "outputs",
    "part_widths",
    "pays",
    "refusal",
    "require",
    "with_layout",
    "within_limits",
]

#: `decide` takes the form where the direct form needs this many times its cycles: a tie goes to the
#: plain sum. And so many times with few filters, below a line of outputs, on processors it was not
#: fitted on: there it knows less of registers and lines that outputs do not fill.
_GAIN, _FEW_GAIN = 1.02, 1.2
_LINE_FILTERS, _LEAST_FILTERS = 16, 8
#: The latter where registers of so few filters take half the time of whole ones.
_LEAST_NARROW = 5
#: How many times the cycles the forms for few filters may take beside such registers, of whose
#: stores the model knows less.
_NARROW_MARGIN = 1.15
#: The sums are as long as the input channels: shorter ones lose less than the transforms add.
_LEAST_INPUTS = 8
#: Sums that a register tile narrower than it may be has at least.
_EVEN = 12
#: Inputs of a sample beyond which tasks ask for theirs ahead, in second-level caches.
_FAR_INPUTS = 2
#: Channels first, rows of so many register tiles may be cut: whole, they fill too much scratch. And
#: of so many where a cache holds the outputs, bytes: parts of rows reach memory less evenly.
_LONG_ROW, _ROW, _CACHED = 7, 4, 16 << 20
#: Tiles of a register tile whose outputs fill few lines whole, whatever their number in each.
_PART = 8
#: Most filters whose lanes are input channels.
_MOST_DOTS = 4
#: Products in whose time the lanes of one are added up, where half a register of filters, which
#: takes half the time, is the other choice. Beside pairs, which are registers, they always pay.
_DOT = 3.5
#: Bytes of a library with long tiles, which need more code.
_MOST_CODE = 147e3
#: Tiles of a task.
MOST_TILES = 128


def refusal(work: Workload, *, exact: bool = False) -> str | None:
    """Why a workload cannot take this form; None if it can."""
    if work.accumulate_dtype == "float64":
        return "it is for float32, float16 and bfloat16"
    if work.empty or 0 in work.plan.input_shape[1:]:
        return "the layer has nothing to compute on this shape"
    if any(axis.dilation > 1 for axis in work.plan.axes):
        return "it has no scheme for a dilation above 1"
    channels = toom_cook_dot.serves(work)
    if not channels and not all(outputs_of(axis) for axis in work.plan.axes):
        return f"it needs one to three taps in every phase {toom_cook_dot.OTHERWISE}"
    if all(axis.max_taps == 1 for axis in work.plan.axes):
        return "every phase has one tap: there is no multiplication to save"
    if not channels and all(outputs_of(axis) == (1,) for axis in work.plan.axes):
        return "no axis with phases of several taps has over two inputs"
    if work.plan.in_channels < _LEAST_INPUTS:
        return f"below {_LEAST_INPUTS} input channels its roundings would exceed the direct form's"
    if exact:
        return "the kernel has entries that are not finite"
    return None


def require(
    work: Workload, target: CpuTarget, *, exact: bool = False, alone: bool = True
) -> Tiling:
    """The cheapest tiling of this form, whatever other forms would cost.

    Where not ``alone``, other processors share its packed weights.

    Raises
    ------
    ConfigError
        The form does not serve the workload.
    """
    reason = refusal(work, exact=exact)
    best = None if reason else _best(work, target, alone=alone)
    if best is None:
        reason = reason or "no tiling keeps scratch and packed weights within their limits"
        raise ConfigError(f"algorithm='toom-cook' does not serve this layer: {reason}")
    return best.tiling


def decide(
    work: Workload, target: CpuTarget, *, exact: bool = False, couple: bool = True
) -> Tiling | None:
    """The cheapest tiling where it is clearly cheaper than the direct forms; else None.

    Without ``couple`` that of coupled channels is none of these.
    """
    if refusal(work, exact=exact):
        return None
    best = _best(work, target)
    if best is None:
        return None
    narrow = of_widest(target, best.tiling.vector, 4) < 1
    thin = work.plan.filters < (_LEAST_NARROW if narrow else _LEAST_FILTERS)
    if thin and not _few(work, best.tiling):
        return None
    if toom_cook_dot.is_one(work, best.tiling) and not toom_cook_dot.known(work, target):
        return None
    if direct.cycles_of_others(work, target, couple=couple) < _gain(work, target) * best.cycles:
        return None
    return best.tiling


def _few(work: Workload, tiling: Tiling) -> bool:
    """Whether a tiling is of a form for few filters."""
    return tiling.across or toom_cook_dot.is_one(work, tiling)


def _gain(work: Workload, target: CpuTarget) -> float:
    enough = work.plan.filters >= _LINE_FILTERS
    return _GAIN if enough or traits(target).voxels_fitted else _FEW_GAIN


def pays(works: Sequence[Workload], tilings: Sequence[Tiling], target: CpuTarget) -> bool:
    """Whether a sample of each shape together is clearly cheaper than in the direct forms."""
    others = sum(direct.cycles_of_others(work, target) for work in works)
    ours = 0.0
    for work, tiling in zip(works, tilings, strict=True):
        if tiling.across:
            ours += toom_cook_voxel.cycles(ToomCookVoxelForm(work, tiling), target)
        elif toom_cook_dot.is_one(work, tiling):
            ours += toom_cook_dot.cycles(ToomCookDotForm(work, tiling), target)
        else:
            ours += cycles(ToomCookForm(work, tiling), target)
    return others >= _gain(works[0], target) * ours


def with_layout(layout: Tiling, work: Workload, target: CpuTarget) -> Tiling | None:
    """The cheapest tiling of another shape or target that shares packed weights with ``layout``."""
    best = _best(work, target, layout)
    return None if best is None else best.tiling


def _best(
    work: Workload, target: CpuTarget, layout: Tiling | None = None, *, alone: bool = True
) -> Candidate | None:
    """The cheapest tiling; a little dearer one where that keeps the memory of a call small."""
    across = min(_few_filters(work, target, layout), key=lambda one: one.cycles, default=None)
    found = list(_candidates(work, target, layout, alone))
    best = min(found, key=lambda one: one.cycles, default=None)
    margin = 1.0
    if best is not None and of_widest(target, best.tiling.vector, 4) < 1:
        margin = _NARROW_MARGIN
    if best is None or (across is not None and across.cycles < margin * best.cycles):
        return across
    if ToomCookForm(work, best.tiling).waits:
        return waiting(work, target, found)
    return with_less(work, target, found)


def _few_filters(work: Workload, target: CpuTarget, layout: Tiling | None) -> Iterator[Candidate]:
    """Those whose lanes are tiles along the width, or input channels."""
    fetch = _far(work, target)
    yield from toom_cook_dot.candidates(work, target, layout)
    yield from toom_cook_voxel.candidates(work, target, layout, fetch=fetch)


def _candidates(
    work: Workload, target: CpuTarget, layout: Tiling | None, alone: bool
) -> Iterator[Candidate]:
    if layout and _few(work, layout):
        return
    axes = work.plan.axes
    vector = layout.vector if layout else vector_lanes(work, target)
    choices = [layout.outputs] if layout else outputs(work, vector)
    if layout and layout.dots > vector:
        return
    fetch = far_inputs(work, target)
    masked = layout.masked if layout else alone and masks(work, target)
    every = [layout.dots] if layout else _dots(work, vector)
    # What need not be compared is left out: each comparison takes its time.
    few = every[-1] if masked and not layout else 0
    if few and few * (work.plan.in_channels / vector + _DOT) <= work.plan.in_channels / 2:
        every = [few]
    stretch = leaving(work, target)
    compact = compacts(target)
    for tile, dots in itertools.product(choices, every):
        counts = [AxisTiles(a, m, 1, True).tiles for a, m in zip(axes, tile, strict=True)]
        register_tiles = [
            (*some, False) for some in _register_tiles(work, target, layout, counts[2], dots)
        ]
        pairs = toom_cook_pair.register_tiles(work, target, layout, tile, counts[2], dots)
        register_tiles += [(*some, True) for some in pairs]
        if few and len(every) > 1:
            register_tiles = [some for some in register_tiles if some[2] == bool(dots)]
        if layout:
            register_tiles = [some for some in register_tiles if some[2] == layout.paired]
        for registers, most, paired in register_tiles:
            rest = work.plan.filters % (registers * vector)
            half = masked and not paired and not dots and 0 < rest % vector <= vector // 2
            last = layout.last if layout else vector // 2 if half else 0
            blocks = _blocks(work, target, counts, most, tile[2] * axes[2].stride)
            for block, shared in itertools.product(blocks, range(4)):
                tiling = Tiling(
                    "toom-cook", vector, registers, most, 1, outputs=tile, block=block,
                    shared=shared, last=last, dots=dots, fetch=fetch, paired=paired,
                    stretch=stretch, masked=masked and (layout is not None or paired or not dots),
                    # Code that other processors have, too, must fit without.
                    compact=compact and alone,
                )  # fmt: skip
                form = ToomCookForm(work, tiling)
                if not _few_weights(form):
                    break
                if masked and not tiling.masked and not within_limits(form):
                    form = ToomCookForm(work, dataclasses.replace(tiling, masked=True))
                if within_limits(form):
                    yield Candidate(cycles(form, target), form.tiling, form.offsets[-1] * 4)


def outputs(work: Workload, vector: int) -> list[tuple[int, int, int]]:
    """Outputs that a tile may have along each axis: see `tile_outputs`.

    None is long with short registers: they are few for the sums of so many inputs.
    """
    axes = work.plan.axes
    found = tile_outputs(axes, work.plan.in_channels, work.plan.filters)
    short = set(itertools.product(*map(outputs_of, axes))) if is_short(vector) else set(found)
    return [some for some in found if some in short]


def _register_tiles(
    work: Workload, target: CpuTarget, layout: Tiling | None, tiles: int, dots: int
) -> Iterator[tuple[int, int]]:
    """Registers and tiles of a register tile worth a look.

    Half the registers, too, where it pays: half the products then stand in scratch. And the widest
    tiles that are equal parts of a row, so that a task may have a part of it.
    """
    filters, only = work.plan.filters - dots, layout.registers if layout else None
    vector = layout.vector if layout else vector_lanes(work, target)
    tile = register_tile(filters, [tiles], vector, target.vector_registers, only)
    found = [tile]
    halves = work.plan.channels_first or not is_short(vector)
    if halves and not layout and tile.registers % 2 == 0:
        half = tile.registers // 2
        found.append(register_tile(filters, [tiles], vector, target.vector_registers, half))
    for tile in found:
        yield tile.registers, tile.width
        least = -(-_EVEN // tile.registers)
        even = [width for width in range(least, tile.width) if tiles % width == 0]
        if even and tiles % tile.width and not needs_line(work):
            yield tile.registers, max(even)
        if tile.width > _PART and _has_parts(work, target, tiles, tile.width):
            yield tile.registers, _PART


def masks(work: Workload, target: CpuTarget) -> bool:
    """Whether one code transforms all registers back, though filters do not fill the last.

    Products of `Tiling.dots` take a register each in scratch then, else only as many lanes as there
    are such filters. So tilings that have dots take one code only where they have pairs, too, or
    where two would be more than a library may have (`_candidates`).
    """
    if not stores_lanes(target) or needs_line(work):
        return False
    return work.plan.filters % vector_lanes(work, target) > 0


def far_inputs(work: Workload, target: CpuTarget) -> bool:
    """Whether inputs come from beyond the core's own cache, so that tasks had better ask ahead.

    Not with short registers, whose products leave too few slots.
    """
    return _far(work, target) and not is_short(vector_lanes(work, target))


def _far(work: Workload, target: CpuTarget) -> bool:
    return work.input_bytes > _FAR_INPUTS * target.l2_bytes and not work.plan.channels_first


def _dots(work: Workload, vector: int) -> list[int]:
    """How many of the last filters may have input channels as lanes."""
    rest = work.plan.filters % vector
    few = 0 < rest <= min(_MOST_DOTS, vector) and vector < work.plan.filters
    return [0, rest] if few and work.plan.in_channels % vector == 0 else [0]


def within_limits(form: ToomCookForm) -> bool:
    """Whether packed weights, scratch and the code of long tiles are small enough."""
    if form.offsets[-1] * 4 > MOST_SCRATCH or not _few_weights(form):
        return False
    return not _long(form) or code_bytes(form) <= _MOST_CODE


def _long(form: ToomCookForm) -> bool:
    axes = zip(form.axes, form.tiling.outputs, strict=True)
    return any(m not in outputs_of(axis.axis) for axis, m in axes)


def _few_weights(form: ToomCookForm) -> bool:
    lanes = sum(group.blocks * group.lanes for group in form.groups)
    # Padded lanes are not the algorithm's: they count once on either side.
    padded = math.prod(form.work.plan.kernel_shape) * max(1.0, lanes / form.work.plan.filters)
    return form.packed_size <= MOST_WEIGHTS * padded


def part_widths(
    work: Workload, target: CpuTarget, row: int, width: int, span: int
) -> Iterator[int]:
    """Parts of a row, in tiles of ``span`` outputs, that tasks may have where outputs wait.

    Cut between register tiles of this ``width``, and where it can be between lines.
    """
    if not _has_parts(work, target, row, width):
        return
    line = LINE_BYTES // numpy_dtype(work.output_dtype).itemsize
    whole = math.lcm(width * span, line) // span
    step = whole if 2 * whole <= row else width
    yield from (step * n for n in (1, 2, 4) if 2 * step * n <= row and step * n * span >= line)


def _has_parts(work: Workload, target: CpuTarget, tiles: int, width: int) -> bool:
    """Whether outputs wait in scratch and rows are long: a task may have a part of one.

    Measured on Zen 4. With 256 bits shorter rows of less scratch were slower.
    """
    if not adders_apart(target) or not needs_line(work) or work.row_axis is not None:
        return False
    sample = math.prod(work.plan.output_shape[1:]) * numpy_dtype(work.output_dtype).itemsize
    return tiles >= (_ROW if sample <= _CACHED else _LONG_ROW) * width


def _blocks(
    work: Workload, target: CpuTarget, counts: list[int], width: int, span: int
) -> Iterator[tuple[int, int, int]]:
    """Sizes of a task worth a look, in tiles of ``span`` outputs along the width.

    There they are cut between register tiles.
    """
    depth, height, row = counts
    widths = {row}
    if not needs_line(work):
        parts = -(-row // width)
        widths |= {width * n for n in (1, 2, 4) if n < parts}
    widths |= {*part_widths(work, target, row, width, span)}
    for w in sorted(widths):
        for h in sorted({min(height, -(-height // n)) for n in (1, 2, 3, 4, 6, 8, 16, 32)}):
            for d in sorted({1, 2, 4, depth} if depth <= 4 else {1, 2, 4}):
                smallest = h == d == 1 and w == min(widths)
                if d <= depth and (d * h * w <= MOST_TILES or smallest):
                    yield d, h, w
