"""What tuning may change where tensor cores are reached by ``mma.sync``.

Fixed in a variant: the voxels and channels of a warp, and the warps that share them. Free: those of
a block, the channels of a slice, and the slices in shared memory. The threads follow.

float32 is offered where the default rounds to TF32 already: where somebody asked for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.mma import CudaMma
from tvmconv.compute.cuda.operands import CHUNKS, Rows
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import gemm_space, limits, mma
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["variants"]

#: Voxels and channels of a warp, and warps that share them.
_WARPS = tuple(sorted({(tile[2], tile[3], tile[5]) for tile in mma.TILES}))
_DEEP, _STAGES = (1, 2, 4), (3, 4)


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each tile of a warp; none where the rule takes none."""
    if work.input_dtype == "float32" and default.form != "mma":
        return []
    if mma.decide(work, targets) is None:
        return []
    depth = Rows(work.folded()).depth
    found = []
    for voxels, lanes, parts in _WARPS:
        base = CudaTiling("mma", 32, lanes, voxels, 16, 32, depth, 3)
        choices = (
            *gemm_space.sides(work, default),
            ("depth", tuple(deep * depth for deep in _DEEP)),
            ("stages", _STAGES),
        )
        fits = partial(_fits, work, tuple(targets), parts)
        cycles = partial(_cycles, work, tuple(targets))
        found.append(Variant(base, choices, fits, cycles, partial(_complete, parts)))
    return found


def _complete(parts: int, tiling: CudaTiling) -> CudaTiling:
    warps = tiling.block_voxels * tiling.block_channels // (tiling.voxels * tiling.lanes)
    return dataclasses.replace(tiling, threads=limits.WARP * warps * parts)


def _fits(work: Workload, targets: Sequence[Architecture], parts: int, tiling: CudaTiling) -> bool:
    if tiling.block_voxels % tiling.voxels or tiling.block_channels % tiling.lanes:
        return False
    form = CudaMma(work, tiling)
    chunks = tiling.block_voxels * CHUNKS
    return (
        form.rows % parts == 0
        and (chunks < tiling.threads or chunks % tiling.threads == 0)
        and tiling.depth <= form.operands.channels
        and tiling.block_channels <= form.operands.columns
        and limits.WARP <= tiling.threads <= 512
        and mma.fits(form, targets)
    )


def _cycles(work: Workload, targets: Sequence[Architecture], tiling: CudaTiling) -> float:
    return mma.cost(work, tiling, targets)
