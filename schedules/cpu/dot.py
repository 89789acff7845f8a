"""The dot rule: few filters, where each output has a register of sums with channels as its lanes.

Strategy
  1. The widest register that the channels fill; others than a multiple of four have none. Of
     bfloat16 a lane has two channels, where an instruction multiplies them as they are stored.
  2. As many outputs of a row as leave their sums, their inputs and a weight in registers, by the
     model of the core: a product that waits for the one before it takes four cycles (of
     bfloat16 six).
  3. Compare with the column, voxel and phase form by the same model; take this form where it is
     cheaper than each.
  4. Cover as many planes and rows with a task tile as leave its input in the second-level cache
     and enough tiles for the cores.

Channels first are left to lanes of voxels where products are two a cycle: a transposed copy of the
input cost up to a tenth more than those, where it was timed.

The model was checked on Emerald Rapids (AVX-512) and Zen 4. The gain over columns is largest where
the cache holds the input, or where an output has hundreds of products.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from tvmconv.compute.dots import DotForm, powers, reaches, row_tiles
from tvmconv.compute.frame import LINE_BYTES, positions
from tvmconv.compute.tiling import Tiling
from tvmconv.schedules.cpu import column, few_filters, voxel
from tvmconv.schedules.cpu.pace import in_halves, of_widest, pace, waiting
from tvmconv.schedules.cpu.traits import couples, widens_apart

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.geometry import Axis
    from tvmconv.targets import CpuTarget

__all__ = [
    "TRANSPOSE",
    "Costs",
    "DotTile",
    "costs",
    "cycles",
    "decide",
    "far_share",
    "lanes_of",
    "margin",
    "refused",
    "row_cycles",
    "widths",
]

#: Lanes of the narrowest register that is used.
_LEAST = 4
#: Cycles that a product waits for the one before it; of bfloat16 numbers, two a lane.
_WAIT, _COUPLED_WAIT = 4, 6
#: Outputs of a phase in a register tile, and products in the code, at most.
_MOST_WIDTH, _MOST_PRODUCTS = 16, 4000
#: Cycles to widen a register, and to transpose one; by measurement.
_WIDEN, TRANSPOSE = 4.0, 8.0
#: The former where each use may widen an input instead, as products take longer than they are
#: loaded; cycles of such a use; and those that the first products of a register tile wait for it in
#: each phase: fewer where a phase has more steps than that, whose products hide them. The least
#: squares of 59 layers of float16 on Zen 4, most of them random: the choice takes 0.2 % more than
#: the better one, 4 % at most.
_COPY, _USE, _FIRST_USES, _STEPS = 2.9, 0.13, 13.3, 8
#: Where rows lie a multiple of this apart and a register tile reads more pieces of them than that,
#: cycles more for each line, by measurement. Probably they meet in the same sets of the cache.
_SET_BYTES, _MOST_PIECES, _CROWDED = 4096, 8, 0.8
#: Share of the second-level cache that inputs may fill.
_HELD = 0.3
#: Share of the other forms' cycles below which this one is taken, where products are two a cycle;
#: where they hide the loads, equal cycles are equal times. And with channels first.
_MARGIN, _FIRST_MARGIN = 0.965, 0.93
#: There columns take more than their model says, by measurement, but where the input is more bytes
#: than the caches hold: dots read it several times.
_COLUMNS, _FAR_COLUMNS = 1.07, 0.99
#: And beside Toom-Cook, which reads such inputs about twice, dots take that much more than theirs
#: says; by measurement of 5x61x61 and 7x63x63 voxels of 240 channels.
_FAR_DOTS = 1.04
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


class Costs(NamedTuple):
    """What differs between processors, by measurement.

    Attributes
    ----------
    finish, run : float
        Cycles to add up the lanes of a sum and to finish it; for outputs that are stored at once.
    line, far : float
        Cycles for a line that comes from the second-level cache, and for one from beyond.
    weight : float
        What a register of weights from the second-level cache takes in spite of products.
    held : float
        Share of the first-level cache that weights may fill.
    """

    finish: float
    run: float
    line: float
    far: float
    weight: float
    held: float


class DotTile(NamedTuple):
    """A register tile.

    Attributes
    ----------
    lanes, width : int
        `Tiling.vector` and `Tiling.width`.
    lines : float
        Lines of a register of weights, where these come from the second-level cache; else 0.
    unit : float
        See `schedules.cpu.pace`.
    wait : int
        Cycles that a product waits for the one before it.
    """

    lanes: int
    width: int
    lines: float
    unit: float
    wait: int = _WAIT


#: On Emerald Rapids and, for inputs of more bytes than the caches hold, on Zen 4; and on Zen 4, the
#: least squares of 61 random layers, off by 9 %.
_COSTS = Costs(finish=1.3, run=5.0, line=1.1, far=3.6, weight=0.1, held=0.5)
_ONE_A_CYCLE = Costs(finish=0.8, run=2.0, line=1.85, far=1.5, weight=0.02, held=0.85)


def costs(work: Workload, target: CpuTarget) -> Costs:
    """Those of a workload on a processor."""
    return _ONE_A_CYCLE if in_halves(target) and work.input_bytes <= few_filters.CACHES else _COSTS


def refused(work: Workload) -> bool:
    """Whether the form does not serve a workload."""
    nothing = work.empty or 0 in work.plan.input_shape[1:]
    mixed = bool(work.mixed_axes) and not work.finishes_whole
    return nothing or mixed or work.plan.in_channels % _LEAST != 0


def decide(
    work: Workload,
    target: CpuTarget,
    *,
    exact: bool = False,
    always: bool = False,
    couple: bool = True,
) -> Tiling | None:
    """The form's default tiling; None where another form is cheaper or only it will do.

    With ``always`` also where another form is cheaper. Without ``couple`` a lane has one channel,
    and weights lie as on every processor.
    """
    if refused(work):
        return None
    size = 8 if work.accumulate_dtype == "float64" else 4
    widest = max(1, target.vector_bits // (8 * size))
    # A product that is not finite reaches what its tap reaches, and nothing else; but an infinity
    # times a subnormal number would be a NaN there.
    coupled = couple and not exact and _couples(work, target)
    lanes = lanes_of(work.plan.in_channels // (2 if coupled else 1), widest)
    few = work.plan.filters < widest and (not work.plan.channels_first or _first(work, target))
    if lanes < _LEAST or not (few or always):
        return None
    pack, *other = packings(work, target, lanes, coupled=coupled)
    tiles = [
        Tiling("dots", lanes, 1, width, 1, pack=pack, coupled=coupled)
        for width in widths(work, target.vector_registers)
    ]
    if not tiles:
        return None
    # The register tile costs the same in every task tile, and is the one of float32.
    tile = min(tiles, key=lambda one: cycles(work, target, one))
    found = [
        tiling
        for one in (pack, *other)
        for tiling in _task_tiles(work, target, dataclasses.replace(tile, pack=one), size)
    ]
    costs = [cycles(work, target, tiling) for tiling in found]
    least = min(costs)
    if not always:
        others = [voxel.least_of_others(work, target)]
        columns = column.decide(work, target, always=True)
        if columns is not None:
            share = few_filters.share(work, target, "columns")
            if share is None:
                share = _columns(work) if pace(target, lanes, size) < 1 else 1.0
            others.append(column.cycles(work, target, columns) * share)
        if least >= margin(work, target, tile) * min(others):
            return None
    return found[costs.index(least)]


def _first(work: Workload, target: CpuTarget) -> bool:
    """Whether the form competes where channels are first."""
    near = work.input_bytes <= target.l2_bytes
    return in_halves(target) or (near and few_filters.share(work, target, "dots") is not None)


def _columns(work: Workload) -> float:
    """What columns take beside their model where products are one a cycle."""
    return _COLUMNS if work.input_bytes <= few_filters.CACHES else _FAR_COLUMNS


def far_share(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """What a tiling takes beside the model, as columns and Toom-Cook take what theirs says."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    near = pace(target, tiling.vector, size) == 1 or work.input_bytes <= few_filters.CACHES
    return 1.0 if near else _FAR_DOTS


def margin(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Share of the other forms' cycles below which this one is taken."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    measured = few_filters.share(work, target, "dots")
    if measured is not None:
        return 1 / measured
    if work.plan.channels_first:
        return _FIRST_MARGIN
    return _MARGIN if pace(target, tiling.vector, size) == 1 else 1.0


@functools.cache
def packings(work: Workload, target: CpuTarget, lanes: int, *, coupled: bool) -> tuple[bool, ...]:
    """`Tiling.pack`: whether rows are copied, transposed or widened; or each use widens an input.

    Either, where products take longer than they are loaded: an instruction or two beside them cost
    little, and which is less depends on the layer.
    """
    if work.plan.channels_first:
        return (True,)
    if coupled or work.input_dtype == work.accumulate_dtype:
        return (False,)
    size = 8 if work.accumulate_dtype == "float64" else 4
    if widens_apart(target) and work.input_dtype == "float16":
        return (False,)
    if pace(target, lanes, size) == 1 or column.widens_rows(work, target):
        return (True,)
    return (True, False)


def _couples(work: Workload, target: CpuTarget) -> bool:
    """Whether a lane has two channels of bfloat16 as they lie.

    Of an odd number of eights registers would be half as long, and as many products.
    """
    stored = work.input_dtype == "bfloat16" and not work.plan.channels_first
    return stored and work.plan.in_channels % (4 * _LEAST) == 0 and couples(target)


def lanes_of(channels: int, widest: int) -> int:
    """Lanes of a register: no more than divide the channels."""
    lanes = widest
    while channels % lanes:
        lanes //= 2
    return lanes


def widths(work: Workload, available: int) -> list[int]:
    """Outputs of a phase in a register tile, such that sums, inputs and a weight are registers."""
    axis, filters = work.plan.axes[2], work.plan.filters
    near = [one.reach for one in reaches(axis)]
    phases = math.prod(one.stride for one in work.plan.axes[:2])
    found = []
    for width in range(1, min(_MOST_WIDTH, -(-axis.out // axis.stride)) + 1):
        inputs = min(len(near) * width, max(near) - min(near) + width)
        sums = width * axis.stride * filters
        products = len(near) * width * filters
        copies = sum(1 if one.whole else one.count for one in row_tiles(axis, width))
        if sums + inputs + 1 <= available and products * copies * phases <= _MOST_PRODUCTS:
            found.append(width)
    return found


def _task_tiles(work: Workload, target: CpuTarget, tile: Tiling, size: int) -> Iterator[Tiling]:
    """Tilings with task tiles of some planes and rows whose inputs the cache holds."""
    depth, height, across = work.plan.axes
    slots = (depth.max_taps - 1) * depth.dilation + 1
    halo = (height.max_taps - 1) * height.dilation
    row_bytes = across.size * DotForm(work, tile).registers * tile.vector * size
    for rows in voxel.parts(positions(height)):
        if rows == 1 or slots * (rows + halo) * row_bytes <= _HELD * target.l2_bytes:
            for planes in voxel.parts(positions(depth)):
                yield dataclasses.replace(tile, rows=rows, planes=planes)


@functools.cache
def row_cycles(
    axis: Axis, filters: int, first: bool, tile: DotTile, costs: Costs
) -> tuple[float, float]:
    """Cycles of a row of register tiles: products of one register of channels, ends.

    ``first``: whether channels are first, so that each filter has stores of its own.
    """
    lanes, most, lines, unit, wait = tile
    near = reaches(axis)
    chain = wait * max(sum(one.output == n for one in near) for n in range(axis.stride))
    step = ends = 0.0
    for tiles in row_tiles(axis, most):
        outputs = tiles.groups * axis.stride
        inputs = len({group + one.reach for one in near for group in range(tiles.groups)})
        weights = axis.kernel * filters
        waits = unit * max((inputs + weights) / 2, chain)
        one = max(len(near) * tiles.groups * filters / 2, waits)
        if lines:
            one = max(one, unit * costs.line * lines * (weights + inputs))
            one += costs.weight * weights * lines
        step += tiles.count * one
        runs = filters if first else 1
        stores = runs * len(powers(outputs * filters // runs, lanes))
        ends += unit * tiles.count * (costs.finish * outputs * filters + costs.run * stores)
    return step, ends


def _widened(form: DotForm) -> float:
    """Cycles of a sample for inputs that each use widens."""
    depth, height, _ = form.work.plan.axes
    steps = depth.useful_taps * height.useful_taps * form.registers
    phases = _outputs_with_taps(depth) * _outputs_with_taps(height)
    first = _FIRST_USES * phases * min(1.0, _STEPS * phases / max(1, steps))
    total = 0.0
    for tiles in form.tiles:
        inputs = len({one.reach for one in form.products(tiles.groups, None)})
        total += tiles.count * (_USE * inputs * steps + first)
    return total


def _outputs_with_taps(axis: Axis) -> int:
    return sum((output + axis.lo) % axis.stride < axis.kernel for output in range(axis.out))


def cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample on one core; uneven shares of the cores count as work."""
    form = DotForm(work, tiling)
    depth, height, width = work.plan.axes
    registers = form.registers
    size = 8 if work.accumulate_dtype == "float64" else 4
    some = costs(work, target)
    # Registers of half a line share it.
    lines = tiling.vector * size / LINE_BYTES
    unit = pace(target, tiling.vector, size)
    held = math.prod(form.weights_shape) * size <= some.held * target.l1_bytes
    wait = _COUPLED_WAIT if tiling.coupled else _WAIT
    tile = DotTile(tiling.vector, tiling.width, 0.0 if held else lines, unit, wait)
    step, ends = row_cycles(width, work.plan.filters, work.plan.channels_first, tile, some)
    total = step * registers * depth.useful_taps * height.useful_taps
    total += ends * depth.out * height.out
    # Lines of the planes' new rows, from the second-level cache.
    voxels = positions(depth) * positions(height) * width.size
    total += waiting(unit) * some.line * lines * voxels * registers * depth.max_taps
    row_bytes = width.size * registers * tiling.vector * size
    if row_bytes % _SET_BYTES == 0 and depth.max_taps * (height.max_taps + 1) > _MOST_PIECES:
        total += (
            waiting(unit) * _CROWDED * lines * voxels * registers * depth.max_taps * height.max_taps
        )
    chunks, blocks = -(-positions(depth) // tiling.planes), -(-positions(height) // tiling.rows)
    halo = (height.max_taps - 1) * height.dilation
    slots = (depth.max_taps - 1) * depth.dilation
    reads = (depth.size + (chunks - 1) * slots) * (height.size + (blocks - 1) * halo) * width.size
    either = len(packings(work, target, tiling.vector, coupled=tiling.coupled)) > 1
    if either:
        total += unit * (reads * registers * _COPY if tiling.pack else _widened(form))
    elif form.packs:
        total += unit * reads * registers * (TRANSPOSE if work.plan.channels_first else _WIDEN)
    if (either or not form.packs) and depth.size * height.size * row_bytes > target.l2_bytes:
        total += waiting(unit) * reads * registers * lines * some.far
    total *= of_widest(target, tiling.vector, size)
    tasks = chunks * blocks * max(1, work.plan.batch)
    return total * (
        -(-tasks // target.cores) * target.cores / tasks + _UNEVEN * target.cores / tasks
    )
