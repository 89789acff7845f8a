"""What tuning may change in the voxel form.

Fixed in a variant: lanes, and the sums of a pass (the layout of the weights). Free: registers of
voxels, rows and planes of a task tile.

Not offered: passes with more sums than registers, loops that outgrow the instruction cache, and
task tiles whose scratch is larger than 16 MiB.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.frame import positions
from tvmconv.compute.phase import border
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.voxels import VoxelForm, products
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 16 << 20
_MOST_PRODUCTS = 2400
_MOST_GROUP = 8
_PACK_CYCLES = 6.0


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """All structures of the voxel form; none where few filters do not call for it."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    widest = max(1, target.vector_bits // (8 * size))
    if work.empty or 0 in work.plan.input_shape[1:] or work.plan.filters > widest:
        return []
    if work.mixed_axes and not work.finishes_whole:
        return []
    depth, height, width = work.plan.axes
    unrolled = products(work) // max(1, depth.max_taps * height.max_taps)
    sums = depth.stride * height.stride * width.stride * work.plan.filters
    found = []
    for vector in (widest, widest // 2):
        if vector < 4:
            continue
        vectors = -(-width.out // (width.stride * vector))
        for registers in _passes(sums, target.vector_registers):
            # Besides the sums: the inputs, and a weight where it serves several of them.
            groups = [
                group
                for group in range(1, min(_MOST_GROUP, vectors) + 1)
                if registers * group + group + (group > 1) <= target.vector_registers
                and unrolled * group <= _MOST_PRODUCTS
            ]
            if groups:
                choices = (
                    ("width", tuple(groups)),
                    ("rows", steps(positions(height), default.rows)),
                    ("planes", steps(positions(depth), default.planes)),
                )
                base = Tiling("voxel", vector, registers, 1, 1)
                cycles = partial(_cycles, work, target)
                found.append(Variant(base, choices, partial(_fits, work), cycles))
    return found


def _passes(sums: int, available: int) -> list[int]:
    """Sums of a pass: equal passes, from all sums at once to two at a time."""
    most = min(sums, available - 1)
    return sorted({-(-sums // n) for n in range(-(-sums // most), max(1, sums // 2) + 1)})


def _fits(work: Workload, tiling: Tiling) -> bool:
    form = VoxelForm(work, tiling)
    size = 8 if work.accumulate_dtype == "float64" else 4
    shapes = (form.ring_shape, form.line_shape, form.row_shape)
    inside = sum(map(math.prod, shapes)) * size <= _MOST_SCRATCH
    return inside and sum(border(work)) <= max(64, work.plan.axes[2].size)


def _cycles(work: Workload, target: CpuTarget, tiling: Tiling) -> float:
    """Cycles of a sample: products, loads of weights and inputs, copies, waiting cores."""
    form = VoxelForm(work, tiling)
    depth, height, width = work.plan.axes
    vectors = form.vectors
    weights, passes = products(work), len(form.passes)
    shifts = depth.max_taps * height.max_taps * width.max_taps
    row = 0.0
    for start in range(0, vectors, tiling.width):
        now = min(tiling.width, vectors - start)
        chain = 8 * weights / tiling.registers
        row += max(weights * now, weights + passes * shifts * now, chain) / 2
    places = (positions(depth), positions(height))
    tasks = -(-places[0] // tiling.planes) * -(-places[1] // tiling.rows)
    around = (tiling.planes + form.ring_shape[0] - 1) * form.ring_shape[1]
    cycles = row * places[0] * places[1] + _PACK_CYCLES * vectors * around * tasks
    tasks *= max(1, work.plan.batch)
    cycles *= work.plan.in_channels
    return cycles * (-(-tasks // target.cores) * target.cores / tasks + 0.1 * target.cores / tasks)
