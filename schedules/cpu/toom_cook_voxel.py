"""The Toom-Cook rule for few filters, where the lanes of a register are tiles along the width.

Strategy
  1. For each number of outputs that a tile may have along each axis, each length of registers, each
     size of a task, and the rows of tiles that share registers: as many filters and registers of
     tiles in a register tile as stay in registers, by the model of the core.
  2. For each number of channels that a task takes at once, add up the cycles: inputs copied, sums
     along depth and height, register tiles, their products added up.
  3. Take the cheapest whose scratch and packed weights keep the limits of Toom-Cook.

Whether it is taken at all, `toom_cook` decides.

The model was fitted on Zen 4, whose additions have pipes of their own. Elsewhere each counts like a
product. Products, loads and stores have the same ratio on Zen 4 and on Intel's processors.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.schemes import KINDS
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.toom_cook_voxels import ToomCookVoxelForm
from tvmconv.compute.transforms import AxisTiles, PhaseClass, outputs_of
from tvmconv.schedules.cpu.candidate import Candidate
from tvmconv.schedules.cpu.pace import pace
from tvmconv.schedules.cpu.traits import traits

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "MOST_FILTERS",
    "MOST_SCRATCH",
    "MOST_WEIGHTS",
    "candidates",
    "cycles",
    "register_tiles",
    "stretches",
]

#: With more filters than that lanes of filters are as good.
MOST_FILTERS = 8
#: Cycles of a product, in registers, beyond what the ports allow; of an input copied, whose block
#: is transposed where channels are last, else gathered; for each row that a sum of inputs reads,
#: and with rows that the first-level cache does not hold; of a product added in scratch; to begin
#: a register tile; of an output transformed back and written. By measurement; the stall
#: and the sums where the model was fitted, and elsewhere.
_STALL, _COPY = {True: 1.03, False: 1.1}, {False: 4.0, True: 8.0}
_SUM, _FAR_SUM = {True: 0.75, False: 0.9}, {True: 1.8, False: 1.5}
_ADDED, _TILE, _OUTPUT = 1.35, 9.0, 15.0
#: The same of an input that comes from memory, the share of the products behind which that hides,
#: and the inputs of a sample beyond which they do; where products are one a cycle, by measurement.
_FAR_COPY, _HIDDEN, _SHARED = 7.0, 0.3, 6 << 20
#: Share of the second-level cache that scratch fills before it is moved more slowly, and by how
#: much with each doubling; where the model was fitted, and elsewhere.
_NEAR, _SPREAD = {True: 0.8, False: 0.9}, {True: 0.25, False: 0.15}
#: Channels that share the beginning of a register tile, where these are compared.
_CHANNELS = 16
#: Limits of Toom-Cook: bytes of scratch, and packed weights in kernels.
MOST_SCRATCH, MOST_WEIGHTS = 16 << 20, 8.0
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


def candidates(
    work: Workload, target: CpuTarget, layout: Tiling | None, *, fetch: bool
) -> Iterator[Candidate]:
    """Tilings worth a look."""
    plan = work.plan
    if plan.filters > MOST_FILTERS or (work.mixed_axes and not work.finishes_whole):
        return
    if layout is not None and not layout.across:
        return
    choices = [layout.outputs] if layout else itertools.product(*map(outputs_of, plan.axes))
    for one in choices:
        outputs = one[0], one[1], one[2]
        depth, height, width = (
            AxisTiles(axis, m, 1, True) for axis, m in zip(plan.axes, outputs, strict=True)
        )
        for vector in _vectors(width.tiles, target):
            for d, h in itertools.product(_parts(depth.tiles), _parts(height.tiles)):
                for rows, some in itertools.product(_rows(h, target), stretches(work)):
                    tiling = Tiling(
                        "toom-cook", vector, 1, 1, rows, outputs=outputs,
                        block=(d, h, width.tiles), stretch=some, across=True, fetch=fetch,
                    )  # fmt: skip
                    form = ToomCookVoxelForm(work, tiling)
                    if form.packed_size > MOST_WEIGHTS * math.prod(plan.kernel_shape):
                        break
                    tiles = register_tiles(form, target)
                    if not tiles:
                        break
                    if rows > 1 and form.vectors == rows * form.row_vectors:
                        continue
                    filters, registers = min(tiles, key=partial(_run_cycles, form, target))
                    tiling = dataclasses.replace(tiling, registers=filters, width=registers)
                    form = ToomCookVoxelForm(work, tiling)
                    scratch = form.offsets[-1] * 4
                    if scratch <= MOST_SCRATCH:
                        yield Candidate(cycles(form, target), tiling, scratch)


def stretches(work: Workload) -> list[int]:
    """Channels that a task may take at once; 0 for all."""
    channels = work.plan.in_channels
    return [n for n in (16, 32, 48) if n < channels] + ([0] if channels <= 64 else [])


def _vectors(tiles: int, target: CpuTarget) -> list[int]:
    """Lengths of registers that a row does not leave half empty."""
    vector = max(1, target.vector_bits // 32)
    found: list[int] = []
    while vector >= 4:
        if not found or vector // 2 < tiles:
            found.append(vector)
        vector //= 2
    return [one for one in found if one == 4 or one // 2 < tiles]


def _parts(tiles: int) -> list[int]:
    """Tiles of a task along an axis."""
    return sorted({min(tiles, n) for n in (1, 2, 3, 4)})


def _rows(tiles: int, target: CpuTarget) -> list[int]:
    """Rows of a task that may share registers; not where that has not been measured."""
    return [n for n in (1, 2, 4) if n <= tiles] if traits(target).voxels_fitted else [1]


def register_tiles(form: ToomCookVoxelForm, target: CpuTarget) -> list[tuple[int, int]]:
    """Filters and registers of tiles whose sums, inputs and one weight are registers."""
    points = max(len(one.scheme.points) for one in form.axes[2].classes)
    return [
        (filters, registers)
        for filters in range(1, form.work.plan.filters + 1)
        for registers in range(1, min(4, form.vectors) + 1)
        if points * registers * (filters + 1) + 1 <= target.vector_registers
    ]


def _step(group: PhaseClass, filters: int, registers: int, adders: bool, unit: float) -> float:
    """Cycles of the products of one channel in a register tile; see `schedules.cpu.pace`."""
    scheme = group.scheme
    products = len(scheme.points) * filters * registers
    added = 0 if adders else sum(len(KINDS[kind]) > 1 for kind, _ in scheme.points) * registers
    inputs = {o + step for kind, o in scheme.points for step, _ in KINDS[kind]}
    # Half of the inputs lie across two lines. A weight is a load of few bytes, which units that are
    # narrower than registers do at once.
    loads = 1.5 * len(inputs) * registers + unit * len(scheme.weights) * filters
    # A product waits four cycles for the one before it.
    return max((products + added) / 2, loads / 2, 4 * unit)


def _run_cycles(form: ToomCookVoxelForm, target: CpuTarget, tile: tuple[int, int]) -> float:
    """Cycles of all register tiles of a run and one channel, and their share of beginnings."""
    total, stall = 0.0, _STALL[traits(target).voxels_fitted]
    adders, unit = traits(target).adders, pace(target, form.tiling.vector, 4)
    for group in form.axes[2].classes:
        for parts, registers in cut(form.vectors, tile[1]):
            for blocks, filters in cut(form.work.plan.filters, tile[0]):
                each = stall * _step(group, filters, registers, adders, unit)
                each += _TILE / _CHANNELS
                total += len(group.places) * parts * blocks * each
    return total


def cycles(form: ToomCookVoxelForm, target: CpuTarget) -> float:
    """Cycles of a sample on one core, by the model; uneven shares of the cores count as work."""
    work, tiling = form.work, form.tiling
    depth, height, width = form.axes
    channels, filters = work.plan.in_channels, work.plan.filters
    tiles = depth.tiles * height.tiles
    blocks = depth.blocks * height.blocks
    chunks = -(-channels // form.channels)
    jobs = [sum(len(form.jobs(a, group)) for group in form.axes[a].classes) for a in (0, 1)]
    tile = tiling.registers, tiling.width
    calls = sum(len(group.places) for group in width.classes)
    calls *= sum(p for p, _ in cut(form.vectors, tile[1])) * sum(
        p for p, _ in cut(filters, tile[0])
    )
    run = _run_cycles(form, target, tile) - calls * _TILE / _CHANNELS
    whole, rest = divmod(height.tiles, height.block)
    runs = depth.tiles * (whole * form.runs - (-rest // form.rows))
    products = runs * jobs[0] * jobs[1]
    steps = products * (run * channels + calls * chunks * _TILE)
    added = form.products_size * runs * form.vectors * max(1, chunks - 1 + 0.5)
    of_row = width.outputs * form.pitch / tiling.vector
    terms = [sum(len(KINDS[kind]) for kind, _ in axis.needed()) for axis in (depth, height)]
    held = 5 * form.row_size * 4 <= target.l1_bytes
    single = [sum(len(KINDS[kind]) == 1 for kind, _ in axis.needed()) for axis in (depth, height)]
    # Inputs alone are not copied once more, but where rows share registers.
    summed = tiles * channels * of_row * math.prod(terms)
    if form.rows > 1:
        summed *= len(form.pieces) * tiling.vector / form.pitch
    else:
        summed -= tiles * channels * of_row * math.prod(single)
    fitted = traits(target).voxels_fitted
    moved = _SUM[fitted] * summed * (1.0 if held else _FAR_SUM[fitted]) + _ADDED * added
    copied = blocks * form.inputs(0) * form.inputs(1) * channels * of_row
    moved += _COPY[work.plan.channels_first] * copied
    if math.prod(work.plan.input_shape[1:]) * 4 > _SHARED and pace(target, tiling.vector, 4) < 1:
        moved += max(0.0, _FAR_COPY * copied - _HIDDEN * steps)
    moved += _OUTPUT * runs * math.prod(form.line_shape[:3]) * form.vectors
    scratch = form.offsets[-1] * 4 / target.l2_bytes
    moved *= 1 + _SPREAD[fitted] * max(0.0, math.log2(scratch / _NEAR[fitted]))
    tasks = blocks * max(1, work.plan.batch)
    uneven = -(-tasks // target.cores) * target.cores / tasks
    return (steps + moved) * (uneven + _UNEVEN * target.cores / tasks)
