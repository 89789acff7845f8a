"""What tuning may change in the voxel form.

Fixed in a variant: lanes, and the sums of a pass (the layout of the weights). Free: registers of
voxels, channels that are packed at once, rows and planes of a task tile; where the rule does so,
rows that are packed together.

Not offered: passes with more sums than registers, loops that outgrow the instruction cache, and
task tiles whose scratch is larger than 16 MiB.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.frame import positions
from tvmconv.compute.phase import border
from tvmconv.compute.tiling import Tiling
from tvmconv.compute.voxels import VoxelForm
from tvmconv.schedules.cpu import voxel
from tvmconv.schedules.cpu.traits import packed_rows
from tvmconv.schedules.space import Variant, steps

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["variants"]

_MOST_SCRATCH = 16 << 20


def variants(work: Workload, target: CpuTarget, default: Tiling) -> list[Variant]:
    """All structures of the voxel form; none where few filters do not call for it."""
    size = 8 if work.accumulate_dtype == "float64" else 4
    widest = max(1, target.vector_bits // (8 * size))
    if voxel.refused(work) or work.plan.filters > widest:
        return []
    depth, height, width = work.plan.axes
    found = []
    most = packed_rows(target) if work.plan.channels_first else 1
    together = (("block.height", (1, most)),) if most > 1 else ()
    for vector in (widest, widest // 2):
        if vector < 4:
            continue
        vectors = -(-width.out // (width.stride * vector))
        tiles = dict.fromkeys(voxel.register_tiles(work, target, vector, vectors))
        packed = {voxel.stretch(work, target, vector, group) for _, group in tiles}
        for registers in sorted({registers for registers, _ in tiles}):
            choices = (
                ("width", tuple(group for one, group in tiles if one >= registers)),
                ("stretch", tuple(sorted({0, *packed, *(one // 2 for one in packed)}))),
                ("rows", steps(positions(height), default.rows)),
                ("planes", steps(positions(depth), default.planes)),
                *together,
            )
            base = Tiling("voxel", vector, registers, 1, 1)
            cycles = partial(voxel.cycles, work, target)
            found.append(Variant(base, choices, partial(_fits, work), cycles))
    return found


def _fits(work: Workload, tiling: Tiling) -> bool:
    form = VoxelForm(work, tiling)
    size = 8 if work.accumulate_dtype == "float64" else 4
    inside = form.scratch_size * size <= _MOST_SCRATCH
    return inside and sum(border(work)) <= max(64, work.plan.axes[2].size)
