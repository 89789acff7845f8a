"""What tuning may change where the sum over the channels is in parts.

Fixed in a variant: the voxels of a block and the columns of a thread. Free: the warps, so the
parts, and for how many blocks of a multiprocessor the registers are bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.split import CudaSplit
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import gemm, limits, split
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["variants"]

_MOST_VOXELS = 512
_THREADS = (64, 128, 256, 512)


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each tile; none where there are many voxels: the weights come too often."""
    plan = work.folded().plan
    if not gemm.serves(work, exact=False) or Room(plan).voxels > _MOST_VOXELS:
        return []
    if plan.in_channels < split.FEWEST_CHANNELS or plan.filters < split.FEWEST_COLUMNS:
        return []
    found = []
    for voxels, lanes in split.tiles(work):
        base = CudaTiling("split", 64, lanes, voxels, voxels, limits.WARP * lanes)
        choices = (
            ("threads", _THREADS),
            ("resident", tuple(sorted({*limits.RESIDENT, default.resident}))),
        )
        fits = partial(_fits, work, tuple(targets))
        found.append(Variant(base, choices, fits, partial(split.cost, work)))
    return found


def _fits(work: Workload, targets: Sequence[Architecture], tiling: CudaTiling) -> bool:
    form = CudaSplit(work, tiling)
    wide = 2 if work.accumulate_dtype == "float64" else 1
    sums = tiling.voxels * tiling.lanes * wide
    registers = sums + form.together * (tiling.lanes + 1) * wide + 32
    return limits.holds(tiling, registers, form.shared_bytes, targets)
