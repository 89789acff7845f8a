"""The column rule: few filters, where products of all taps come first and sums of them after.

Strategy
  1. Reduce as many axes as have equally many taps in every phase; of these choices, and of the
     register tiles of the product, take the one with the fewest cycles by the model of the core.
     Taps that would read beyond the ends of the input are not made: where a volume is thin, that is
     a good part of them. One register of columns is short of loads, and asks for inputs besides.
  2. Compare with the voxel and the phase form by the same model; take this form where it is
     cheaper than both.
  3. Inputs of half width are widened by each register tile of the product, where the processor
     widens a register at once; else once for all tiles, row by row. Some channels at a time, among
     the products of others, where that was measured (`Tiling.stretch`).
  4. Channels first: see `schedules.cpu.column_rows`.
  5. Cover enough planes and rows with a task tile that few products are made twice, and leave
     enough tiles for the cores. Products that the second-level cache does not hold cost their way
     to the next one and back, which is less than to make them twice.

Rows that are widened once are more than the first-level cache holds where a product sums taps of
the depth: they go to the second level and come back, which costs more than to widen them again.

The model was checked on Emerald Rapids (AVX-512). The gain over the voxel form is largest where
the input comes from memory: the voxel form transposes all of it, this one only the columns.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.compute.columns import ColumnForm, columns_of, pieces_of
from tvmconv.compute.frame import LINE_BYTES, first_position, positions
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu import column_rows, phase, voxel
from tvmconv.schedules.cpu.pace import of_widest, pace
from tvmconv.schedules.cpu.traits import tall, widens_apart
from tvmconv.schedules.cpu.voxel import parts

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.geometry import Axis
    from tvmconv.targets import CpuTarget

__all__ = [
    "cycles",
    "decide",
    "lanes_of",
    "parts",
    "reducible",
    "refused",
    "row_tiles",
    "widened_at_once",
    "widens_rows",
]

#: Cycles to store, transpose and store again one register of products of a voxel, by measurement.
_TRANSPOSE = 6.0
#: Cycles to add a register of products to a sum, and to finish a register of sums.
_ADD, _FINISH = 1.0, 4.0
#: Cycles for an input that comes from memory, beside the products, which hide most of it.
_FAR = 0.03
#: Share of the second-level cache that products may fill, bytes a cycle to the caches beyond and
#: back, and the scratch of all tasks together that is nothing beside the tensors.
_HELD, _NEAR_BYTES, _SMALL_SCRATCH = 0.6, 16.0, 3.9e6
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


def refused(work: Workload) -> bool:
    """Whether the form does not serve a workload."""
    nothing = work.empty or 0 in work.plan.input_shape[1:]
    mixed = work.mixed_axes and not work.finishes_whole
    narrow = work.plan.channels_first and work.plan.axes[2].size < column_rows.LEAST
    return bool(nothing or mixed or narrow)


def reducible(work: Workload) -> Iterator[int]:
    """Over how many axes the product may sum the taps: phases with fewer would need zeros.

    None where channels are first.
    """
    yield 0
    if work.plan.channels_first:
        return
    for number, axis in enumerate(work.plan.axes[:2], 1):
        if axis.kernel % axis.stride:
            break
        yield number


def decide(
    work: Workload,
    target: CpuTarget,
    *,
    exact: bool = False,
    always: bool = False,
    layout: Tiling | None = None,
) -> Tiling | None:
    """The form's default tiling; None where another form is cheaper or only it will do.

    With ``always`` also where another form is cheaper; with ``layout`` too, and then the tiling
    that shares packed weights with it.
    """
    del exact  # A product that is not finite reaches what its tap reaches, and nothing else.
    size = 8 if work.accumulate_dtype == "float64" else 4
    vector = max(1, target.vector_bits // (8 * size))
    if refused(work) or vector < 4 or (work.plan.filters >= vector and not layout):
        return None
    found: list[Tiling] = []
    if work.plan.channels_first:
        for base in row_tiles(work, target, vector, layout):
            found += _task_tiles(work, target, base, size)
    for reduced in _reductions(work, layout):
        columns = columns_of(work, reduced)
        lanes = layout.vector if layout else lanes_of(columns, vector)
        pieces = [voxels for _, voxels in pieces_of(work.plan.axes[2].size, lanes)]
        tile = phase.register_tile(
            columns, pieces, lanes, target.vector_registers,
            layout.registers if layout else None, steps=_steps(work, reduced),
            load=phase.LOAD if tall(target) else 0.0, tall=tall(target),
        )  # fmt: skip
        base = (lanes, tile.registers, tile.width, reduced)
        found += list(_task_tiles(work, target, base, size))
    costs = [cycles(work, target, tiling) for tiling in found]
    least = min(costs)
    most = column_rows.margin(work, target) * voxel.least_of_others(work, target)
    taken = always or layout is not None or least < most
    return found[costs.index(least)] if taken else None


def _reductions(work: Workload, layout: Tiling | None) -> list[int]:
    if work.plan.channels_first:
        return []
    return [layout.reduced] if layout else list(reducible(work))


def row_tiles(
    work: Workload, target: CpuTarget, widest: int, layout: Tiling | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Channels first: lanes, registers, width, and no reduced axis."""
    voxels = work.plan.axes[2].size
    lanes = column_rows.lanes_of(voxels, widest)
    registers = layout.registers if layout else None
    for columns, width in column_rows.register_tiles(
        columns_of(work, 0), -(-voxels // lanes), target.vector_registers, registers
    ):
        yield lanes, columns, width, 0


def lanes_of(columns: int, widest: int) -> int:
    """Lanes of a register: half of the widest, or a quarter, where columns are few."""
    lanes = widest
    while lanes > 4 and lanes // 2 >= columns:
        lanes //= 2
    return lanes


def _steps(work: Workload, reduced: int) -> int:
    """Steps of a register tile of the product."""
    taps = [axis.max_taps for axis in work.plan.axes[:reduced]]
    return work.plan.in_channels * math.prod(taps)


def _task_tiles(
    work: Workload, target: CpuTarget, base: tuple[int, int, int, int], size: int
) -> Iterator[Tiling]:
    """Tilings with task tiles of some planes and rows whose scratch is small."""
    vector, registers, width, reduced = base
    depth, height, _ = work.plan.axes
    pack = work.plan.channels_first or widens_rows(work, target)
    some = 0 if pack else widened_at_once(work, target)
    high = tall(target) and not work.plan.channels_first
    most = max(_HELD * target.l2_bytes, _SMALL_SCRATCH / target.cores)
    for rows in parts(positions(height)):
        for planes in parts(positions(depth)):
            tiling = Tiling(
                "columns", vector, registers, width, rows, pack=pack, planes=planes,
                reduced=reduced, stretch=some, tall=high,
            )  # fmt: skip
            if ColumnForm(work, tiling).offsets[-1] * size <= most or (rows == planes == 1):
                yield tiling


def widens_rows(work: Workload, target: CpuTarget) -> bool:
    """`Tiling.pack`: inputs that are narrow, where no instruction widens a register of them.

    bfloat16 is widened by a shift. True also where nothing is widened.
    """
    if work.input_dtype == work.accumulate_dtype:
        return True
    if work.input_dtype == "bfloat16" or target.architecture in {"aarch64", "arm64"}:
        return False
    return not {"f16c", "zvfhmin"} & set(target.required_features())


def widened_at_once(work: Workload, target: CpuTarget) -> int:
    """`Tiling.stretch` of tiles that widen: a register, with others to multiply meanwhile."""
    some = target.vector_bits // 32
    return some if widens_apart(target) and work.plan.in_channels >= 2 * some else 0


@functools.cache
def _taps(axis: Axis) -> float:
    """Taps of a phase whose inputs exist, on average: positions at the ends have fewer."""
    first, dilation = first_position(axis), axis.dilation
    places = [
        q - tap * dilation
        for q in range(first, first + positions(axis))
        for tap in range(axis.max_taps)
    ]
    return sum(0 <= place < axis.size for place in places) / positions(axis)


def _asking(work: Workload, width: int, registers: int) -> float:
    """Cycles of a step for later inputs that are asked for, where the loads are what limits it."""
    loads = width + registers
    asked = -(-width * numpy_dtype(work.input_dtype).itemsize // LINE_BYTES)
    return max(0, loads + asked - max(width * registers, loads)) / 2


def _row_cycles(work: Workload, form: ColumnForm, unit: float) -> float:
    """Cycles of a row of products, transposed."""
    row, vector = 0.0, form.tiling.vector
    taps = [_taps(axis) for axis in work.plan.axes[: form.tiling.reduced]]
    steps = work.plan.in_channels * math.prod(taps)
    for group in form.groups:
        registers = group.lanes // vector
        for pieces, size in form.pieces:
            for tiles, voxels in cut(size, form.tiling.width):
                ends = phase.tile_cycles(voxels, registers, 0)
                cycles = phase.tile_cycles(voxels, registers, steps) - ends + unit * ends
                cycles += unit * steps * _asking(work, voxels, registers)
                row += group.blocks * pieces * tiles * cycles
    return row + unit * _TRANSPOSE * form.lanes / vector * form.voxels


def cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample on one core; uneven shares of the cores count as work."""
    form = ColumnForm(work, tiling)
    depth, height, width = work.plan.axes
    first = work.plan.channels_first
    size = 8 if work.accumulate_dtype == "float64" else 4
    unit = pace(target, tiling.vector, size)
    row = column_rows.product_cycles(form, unit) if first else _row_cycles(work, form, unit)
    sums = depth.stride * height.stride * width.stride * work.plan.filters
    position = unit * form.sums.vectors * (_ADD * columns_of(work, tiling.reduced) + _FINISH * sums)
    chunks, blocks = -(-positions(depth) // tiling.planes), -(-positions(height) // tiling.rows)
    # Planes and rows of products that two tiles make, each for itself.
    slots, rows, *_ = form.sums.ring_shape
    made = [
        min(count * size, most + (count - 1) * (size - share))
        for count, size, share, most in (
            (chunks, tiling.planes + slots - 1, tiling.planes, form.product_axes[0]),
            (blocks, rows, tiling.rows, form.product_axes[1]),
        )
    ]
    total = row * made[0] * made[1] + position * positions(depth) * positions(height)
    scratch = form.offsets[-1] * size
    over = max(0.0, 1 - _HELD * target.l2_bytes / scratch)
    moved = 2 * math.prod(form.sums.ring_shape[2:]) * size
    total += unit * made[0] * made[1] * over * moved / _NEAR_BYTES
    # Rows of input that come from far, and neighbours' once more.
    reads = (made[0] + chunks * (depth.max_taps - 1)) * (made[1] + blocks * (height.max_taps - 1))
    if first:
        total += unit * made[0] * blocks * column_rows.first_cycles(form)
    else:
        total += unit * _FAR * reads * width.size * work.plan.in_channels
    total *= of_widest(target, tiling.vector, size)
    tasks = chunks * blocks * max(1, work.plan.batch)
    return total * (
        -(-tasks // target.cores) * target.cores / tasks + _UNEVEN * target.cores / tasks
    )
