"""The voxel rule: layers with so few filters that registers of channels would be mostly padding.

Strategy
  1. Compare the cost of a row of positions, by the model of the core, with the phase form's; take
     this form where it is cheaper.
  2. As many registers of voxels as leave every sum of a pass in a register: a weight broadcast
     serves all of them.
  3. Cover enough planes and rows with a task tile that few input rows are packed twice, but no more
     than fits half the second-level cache, and leave enough tiles for the cores.

The column form leaves the input as it lies; its rule comes before this one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tvmconv.compute.phase import border
from tvmconv.compute.tiling import Tiling, cut
from tvmconv.compute.voxels import products
from tvmconv.geometry import Axis
from tvmconv.schedules.cpu import phase

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["decide", "phase_cycles", "sample_cycles"]

#: Products in the innermost loop, beyond which the code grows out of the instruction cache.
_MOST_PRODUCTS = 2400
#: Cycles to transpose, widen and store one register of input, by measurement.
_PACK_CYCLES = 6.0
#: And to wait for one that comes from beyond the second-level cache.
_FAR_CYCLES = 16.0
#: Cycles to finish a register of sums: into a line, interleaved with its neighbours, out again.
_FINISH_CYCLES = 8.0


def decide(
    work: Workload, target: CpuTarget, *, exact: bool = False, always: bool = False
) -> Tiling | None:
    """The voxel form's default tiling; None where the phase form is cheaper or only it will do.

    With ``always`` also where the phase form is cheaper.
    """
    if (exact and border(work) != (0, 0)) or work.empty or 0 in work.plan.input_shape[1:]:
        return None
    if work.mixed_axes and not work.finishes_whole:
        return None
    size = 8 if work.accumulate_dtype == "float64" else 4
    vector = max(1, target.vector_bits // (8 * size))
    depth, height, width = work.plan.axes
    count = -(-width.out // width.stride)
    while vector > 4 and vector // 2 >= count:
        vector //= 2
    if vector < 4 or (work.plan.filters >= vector and not always):
        return None
    vectors = -(-count // vector)
    cost, registers, group = min(_candidates(work, target, vectors))
    unrolled = products(work) // max(1, depth.max_taps * height.max_taps) * group
    if unrolled > _MOST_PRODUCTS:
        return None
    if not always and _position_cycles(work, cost, vectors) >= 0.8 * _phase_cost(work, target):
        return None
    rows, planes = _task_tile(work, target, vectors * vector, size)
    return Tiling("voxel", vector, registers, group, rows, planes=planes)


def sample_cycles(work: Workload, target: CpuTarget) -> float:
    """Cycles of a sample on one core, whether or not the form is the cheapest."""
    tiling = decide(work, target, always=True)
    if tiling is None:
        return float("inf")
    depth, height, width = work.plan.axes
    vectors = -(-width.out // (width.stride * tiling.vector))
    row = min(_candidates(work, target, vectors))[0]
    size = 8 if work.accumulate_dtype == "float64" else 4
    if math.prod(work.plan.input_shape[1:]) * size > target.l2_bytes:
        row += vectors * _FAR_CYCLES
    return _position_cycles(work, row, vectors) * _positions(depth) * _positions(height)


def phase_cycles(work: Workload, target: CpuTarget) -> float:
    """The same of the phase form."""
    depth, height, _ = work.plan.axes
    return _phase_cost(work, target) * _positions(depth) * _positions(height)


def _position_cycles(work: Workload, channel: float, vectors: int) -> float:
    """Cycles of one position of depth and height, of which ``channel`` for an input channel."""
    sums = work.plan.filters * math.prod(axis.stride for axis in work.plan.axes)
    return channel * work.plan.in_channels + _FINISH_CYCLES * sums * vectors


def _positions(axis: Axis) -> int:
    return (axis.out - 1 + axis.lo) // axis.stride - axis.lo // axis.stride + 1


def _candidates(
    work: Workload, target: CpuTarget, vectors: int
) -> Iterator[tuple[float, int, int]]:
    """(cost, sums of a pass, registers of voxels) for each number of voxel registers that fits.

    The cost is in cycles of one input channel for all outputs of one position of depth and height.
    A weight is broadcast once for a group of voxel registers; an input register is loaded once a
    pass and shift.
    """
    depth, height, width = work.plan.axes
    sums = depth.stride * height.stride * width.stride * work.plan.filters
    weights = products(work)
    shifts = depth.max_taps * height.max_taps * width.max_taps
    for group in range(1, min(8, vectors) + 1):
        # Besides the sums: the inputs, and a weight where it serves several of them.
        room = (target.vector_registers - group - (group > 1)) // group
        if room < 1:
            break
        passes = -(-sums // room)
        cycles = 0.0
        for start in range(0, vectors, group):
            now = min(group, vectors - start)
            # A sum's products wait for each other, four cycles each: those of the one with most.
            chain = 8 * max(shifts, passes * weights // sums)
            cycles += max(weights * now, weights + passes * shifts * now, chain) / 2
        yield cycles + vectors * _PACK_CYCLES, -(-sums // passes), group


def _phase_cost(work: Workload, target: CpuTarget) -> float:
    """Cycles of the phase form for one position of depth and height."""
    tiling = phase.decide(work, target)
    if tiling is None:
        return float("inf")
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
    return products + ends * depth.stride * height.stride


def _task_tile(work: Workload, target: CpuTarget, voxels: int, size: int) -> tuple[int, int]:
    """Rows and planes of a task tile."""
    depth, height, _ = work.plan.axes
    row_bytes = voxels * work.plan.in_channels * size * ((depth.max_taps - 1) * depth.dilation + 1)
    extra = (height.max_taps - 1) * height.dilation
    rows_all, planes_all = _positions(height), _positions(depth)
    rows = max(1, min(rows_all, 16, int(target.l2_bytes * 0.6 / max(1, row_bytes)) - extra))
    planes = planes_all
    wanted = 6 * target.cores

    def tiles() -> int:
        return max(1, work.plan.batch) * -(-planes_all // planes) * -(-rows_all // rows)

    while tiles() < wanted and (planes > 4 or rows > 2):
        if planes > 2 * rows or rows <= 2:
            planes = -(-planes // 2)
        else:
            rows = -(-rows // 2)
    return rows, planes
