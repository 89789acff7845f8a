"""The voxel rule: layers with so few filters that registers of channels would be mostly padding.

Strategy
  1. Of one to eight registers of voxels, and as many sums as leave all of a pass in registers, take
     those with the fewest cycles by the model of the core: a weight broadcast serves the voxels, an
     input the sums. Inputs beside the first lie across two lines of the cache and count twice.
  2. Pack so many channels of a row (channels last: of a register tile's voxels) at once that the
     first-level cache holds them beside the sums.
  3. Cover as many planes and rows with a task tile as leave its ring of sums in the second-level
     cache and enough tiles for the cores: what two tiles read is packed twice.
  4. On Zen 3, channels first, pack some short rows together where channels lie whole pages apart:
     the rows of a channel follow each other.
  5. Compare with the phase form by the same model; take this form where it is cheaper.

The column and the dot form leave the input as it lies; their rules come before this one.

The model was checked on Emerald Rapids (AVX-512) and, packing among products, on Zen 4.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.compute.frame import positions
from tvmconv.compute.lane_sums import products
from tvmconv.compute.phase import PhaseForm, border
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.voxels import VoxelForm
from tvmconv.policies import numpy_dtype
from tvmconv.schedules.cpu import few_filters, phase
from tvmconv.schedules.cpu.pace import in_halves, of_widest, pace, waiting
from tvmconv.schedules.cpu.traits import packed_rows

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = [
    "cycles",
    "decide",
    "least_of_others",
    "packs_together",
    "parts",
    "phase_cycles",
    "refused",
    "register_tiles",
    "row_cycles",
    "sample_cycles",
    "stretch",
]

#: Registers of voxels side by side, and products in the innermost loop, beyond which the code grows
#: out of the instruction cache.
_MOST, _MOST_PRODUCTS = 8, 2400
#: Cycles to load and store a register of sums; to finish one, and to wait for the place of its
#: outputs; by measurement.
_SUM, _FINISH, _FAR_OUTPUT = 1.5, 4.0, 10.0
#: Cycles to pack a register of inputs, and to wait for one that comes from beyond the second-level
#: cache: where channels are first, and where they are last and rows are transposed.
_COPY, _FAR = {True: 2.0, False: 3.0}, {True: 2.8, False: 8.0}
#: And more to widen it before it is transposed, where products are one a cycle; by measurement.
_WIDEN = {"float16": 3.4, "bfloat16": 9.7}
#: The same where groups are packed among the products of those before, asked for in time: where
#: products are one a cycle, by measurement, and where they are two and share a unit with shuffles,
#: cautiously. And the registers that this takes.
_AMONG, _SHUFFLED = {True: (2.0, 3.0), False: (3.0, 4.0)}, 5
#: What products take beyond what the model says, as a share; and each load, so that of equal
#: register tiles the one with fewer is taken; and, where products are one a cycle and hide the
#: loads, a weight that is a register instead of an operand.
_STALL, _LOAD, _BROADCAST = 0.08, 0.02, 0.13
#: Shares of the first-level cache that packed inputs may fill, more where products are one a cycle
#: and hide what comes late, and of the second that sums may.
_HELD_INPUTS, _HELD_SUMS = {True: 0.65, False: 0.5}, 0.5
#: Channels that are packed at once are a multiple.
_CHANNELS = 16
#: Most bytes of an input row that is packed with others, and the distance of channels of which
#: theirs is a multiple, so that they meet in the same sets of the caches. With rows of 512 bytes a
#: layer took 1.2 times as long, and with channels that lie otherwise others 0.97 to 1.1 times.
_SHORT, _MEET = 192, 4096
#: Share of the phase form's cycles below which this form is taken; where that one has narrower
#: registers, whose products are two a cycle and not one, its model is as good as this one's.
_MARGIN = {False: 0.8, True: 1.0}
#: What the copy of an input costs such a phase form: channels last and first; and one with whole
#: registers, one product a cycle, where channels are first; by measurement.
_PACKED, _PACKED_WHOLE = {False: 1.25, True: 2.4}, 0.5
#: What a task more or less a core costs where the cores are not equally fast.
_UNEVEN = 0.1


def refused(work: Workload) -> bool:
    """Whether the form does not serve a workload."""
    nothing = work.empty or 0 in work.plan.input_shape[1:]
    return nothing or bool(work.mixed_axes and not work.finishes_whole)


def decide(
    work: Workload, target: CpuTarget, *, exact: bool = False, always: bool = False
) -> Tiling | None:
    """The voxel form's default tiling; None where the phase form is cheaper or only it will do.

    With ``always`` also where the phase form is cheaper.
    """
    if (exact and border(work) != (0, 0)) or refused(work):
        return None
    size = 8 if work.accumulate_dtype == "float64" else 4
    vector = widest = max(1, target.vector_bits // (8 * size))
    width = work.plan.axes[2]
    count = -(-width.out // width.stride)
    while vector > 4 and vector // 2 >= count:
        vector //= 2
    if vector < 4 or (work.plan.filters >= widest and not always):
        return None
    found = [
        Tiling(
            "voxel",
            vector,
            registers,
            group,
            1,
            planes=1,
            stretch=stretch(work, target, vector, group),
        )
        for registers, group in register_tiles(work, target, vector, -(-count // vector))
    ]
    if not found:
        return None
    # The register tile costs the same in every task tile.
    tile = min(found, key=lambda one: row_cycles(VoxelForm(work, one), target))
    tilings = list(_task_tiles(work, target, tile, size))
    costs = [cycles(work, target, tiling) for tiling in tilings]
    least = min(costs)
    if not always:
        measured = few_filters.share(work, target, "phase")
        most = _MARGIN[phase_share(work, target) < 1] if measured is None else measured
        if least >= most * phase_cycles(work, target):
            return None
    best = tilings[costs.index(least)]
    together = packs_together(work, target, best)
    return dataclasses.replace(best, block=(1, together, 1))


def packs_together(work: Workload, target: CpuTarget, tiling: Tiling) -> int:
    """Input rows that are packed together."""
    size, rows = numpy_dtype(work.input_dtype).itemsize, packed_rows(target)
    short = work.plan.axes[2].size * size <= _SHORT
    distance = math.prod(axis.size for axis in work.plan.axes) * size
    meet = distance % _MEET == 0 and distance * work.plan.in_channels > target.l2_bytes
    whole = tiling.stretch == 0 and tiling.rows >= rows
    return rows if work.plan.channels_first and short and meet and whole else 1


def register_tiles(
    work: Workload, target: CpuTarget, vector: int, vectors: int
) -> Iterator[tuple[int, int]]:
    """Sums of a pass and registers of voxels that leave all sums in registers."""
    depth, height, width = work.plan.axes
    sums = (
        work.plan.filters
        * math.prod(min(axis.stride, axis.kernel) for axis in (depth, width))
        * height.kernel
    )
    unrolled = products(work) // max(1, depth.max_taps)
    for group in range(1, min(_MOST, vectors) + 1):
        # Besides the sums: the inputs, and a weight where it serves several of them.
        among = VoxelForm(work, Tiling("voxel", vector, 1, group, 1)).by_groups
        spare = (group > 1) + _SHUFFLED * among
        room = (target.vector_registers - group - spare) // group
        if room < 1 or unrolled * group > _MOST_PRODUCTS:
            break
        yield -(-sums // -(-sums // room)), group


def stretch(work: Workload, target: CpuTarget, vector: int, group: int) -> int:
    """Channels that are packed at once, 0 for all."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    channels = work.plan.in_channels
    row = VoxelForm(work, Tiling("voxel", vector, 1, group, 1)).packed_shape[1] * size
    held = _HELD_INPUTS[pace(target, vector, size) < 1] * target.l1_bytes
    most = max(1, int(held / row) // _CHANNELS) * _CHANNELS
    if channels <= most:
        return 0
    each = -(-channels // -(-channels // most))
    return -(-each // _CHANNELS) * _CHANNELS


def row_cycles(form: VoxelForm, target: CpuTarget) -> float:
    """Cycles of the products of an input row, at each of its depth taps.

    A product that waits for the one before it takes four cycles.
    """
    work, vector = form.work, form.tiling.vector
    unit = pace(target, vector, 8 if work.accumulate_dtype == "float64" else 4)
    stall = 1 + _STALL * unit
    channels = work.plan.in_channels
    blocks = -(-channels // form.packed_shape[0])
    total = 0.0
    for one in form.passes:
        reaches = {form.reach(t, one.sums[cell][1][0][2]) for t, cell in one.products}
        loads = sum(1 if reach % vector == 0 else 2 for reach in reaches)
        run = len(one.products)
        chain = 4 * max(sum(cell == n for _, cell in one.products) for n in range(len(one.sums)))
        for _, groups, size in form.groups:
            step = stall * max(run * size / 2, unit * (run + loads * size) / 2, unit * chain)
            step += unit * _LOAD * (run + loads * size)
            step += (1 - unit) * _BROADCAST * run * (size > 1)
            ends = unit * (_SUM * blocks * len(one.sums) * size)
            total += one.run.count * groups * (step * channels + ends)
    return total


def cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample on one core; uneven shares of the cores count as work."""
    form = VoxelForm(work, tiling)
    depth, height, _ = work.plan.axes
    size = 8 if work.accumulate_dtype == "float64" else 4
    chunks, blocks = -(-positions(depth) // tiling.planes), -(-positions(height) // tiling.rows)
    # Rows of input that two tiles read, each for itself.
    planes = depth.size + (chunks - 1) * (form.line_shape[0] - 1)
    rows = height.size + (blocks - 1) * form.halo
    taps = depth.useful_taps / (depth.size * depth.kernel)
    unit = pace(target, tiling.vector, size)
    total = row_cycles(form, target) * depth.size * taps * rows
    far = math.prod(work.plan.input_shape[1:]) * size > target.l2_bytes
    first = work.plan.channels_first
    packed = planes * rows * work.plan.in_channels * form.vectors
    copy, wait = _AMONG[unit < 1] if form.by_groups else (_COPY[first], _FAR[first])
    total += packed * (unit * copy + far * waiting(unit) * wait)
    if unit < 1 and not first:
        total += packed * _WIDEN.get(work.input_dtype, 0.0)
    sums = form.vectors * len(form.all_sums) * positions(depth) * positions(height)
    distant = math.prod(work.output_shape[1:]) * size > target.l2_bytes
    total += sums * (unit * _FINISH + distant * waiting(unit) * _FAR_OUTPUT)
    total *= of_widest(target, tiling.vector, size)
    tasks = chunks * blocks * max(1, work.plan.batch)
    return total * (
        -(-tasks // target.cores) * target.cores / tasks + _UNEVEN * target.cores / tasks
    )


def sample_cycles(work: Workload, target: CpuTarget) -> float:
    """Cycles of a sample on one core, whether or not the form is the cheapest."""
    tiling = decide(work, target, always=True)
    return float("inf") if tiling is None else cycles(work, target, tiling)


def least_of_others(work: Workload, target: CpuTarget) -> float:
    """Cycles of this form or the phase form, whichever is fewer, beside those of other forms."""
    measured = few_filters.share(work, target, "phase") or 1.0
    return min(sample_cycles(work, target), measured * phase_cycles(work, target))


def phase_cycles(work: Workload, target: CpuTarget) -> float:
    """The same of the phase form."""
    depth, height, _ = work.plan.axes
    tiling = phase.decide(work, target)
    if tiling is None:
        return float("inf")
    total = _phase_cost(work, target, tiling) * positions(depth) * positions(height)
    share = phase_share(work, target)
    if share < 1 and PhaseForm(work, tiling).packs:
        total += _PACKED[work.plan.channels_first] * math.prod(work.plan.input_shape[1:])
    elif in_halves(target) and work.plan.channels_first:
        total += _PACKED_WHOLE * math.prod(work.plan.input_shape[1:])
    return total * share


def phase_share(work: Workload, target: CpuTarget) -> float:
    """What its products take of those of the widest registers (`pace.of_widest`)."""
    tiling = phase.decide(work, target)
    size = 8 if work.accumulate_dtype == "float64" else 4
    return 1.0 if tiling is None else of_widest(target, tiling.vector, size)


def _phase_cost(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of the phase form for one position of depth and height."""
    folded = work.folded() if tiling.fold else work
    depth, height, width = folded.plan.axes
    lanes = [tiling.registers] * (folded.plan.filters // (tiling.registers * tiling.vector))
    rest = folded.plan.filters - sum(lanes) * tiling.vector
    if rest > 0:
        lanes.append(-(-rest // tiling.vector))
    products = ends = 0.0
    for one in width.phases:
        for tiles, voxels in cut(one.count, tiling.width):
            products += one.taps * tiles * sum(phase.tile_cost(voxels, r) for r in lanes)
            ends += tiles * sum(phase.tile_cycles(voxels, r, 0) for r in lanes)
    products *= depth.kernel * height.kernel * work.plan.in_channels
    size = 8 if work.accumulate_dtype == "float64" else 4
    unit = pace(target, tiling.vector, size)
    return products + unit * ends * depth.stride * height.stride


def _task_tiles(work: Workload, target: CpuTarget, tile: Tiling, size: int) -> Iterator[Tiling]:
    """Tilings with task tiles of some planes and rows whose sums the cache holds."""
    depth, height, _ = work.plan.axes
    for rows in parts(positions(height)):
        form = VoxelForm(work, dataclasses.replace(tile, rows=rows))
        if rows == 1 or form.scratch_size * size <= _HELD_SUMS * target.l2_bytes:
            for planes in parts(positions(depth)):
                yield dataclasses.replace(tile, rows=rows, planes=planes)


def parts(count: int) -> list[int]:
    """Sizes that cut ``count`` into equal parts, but for the last."""
    return sorted({-(-count // n) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, count)})
