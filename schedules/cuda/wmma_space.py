"""What tuning may change on tensor cores.

Fixed in a variant: the rows and columns of a warp. Free: those of a block, the channels of a slice,
and for how many blocks of a multiprocessor the registers are bounded. The threads follow.

Not offered: as for the matrix product; and warps with so many fragments that their sums spill.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.compute.cuda.wmma import CudaWmma
from tvmconv.schedules.cuda import gemm_space, limits, wmma
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["variants"]

_SIDE = 16
_WARPS = (16, 32, 64)
_MOST_FRAGMENTS = 16
_DEPTHS = (16, 32, 64)
_VECTOR = 8


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each tile of a warp."""
    if not wmma.serves(work, targets):
        return []
    found = []
    for voxels in _WARPS:
        for lanes in _WARPS:
            if voxels * lanes > _MOST_FRAGMENTS * _SIDE * _SIDE:
                continue
            base = CudaTiling("wmma", 32, lanes, voxels, 16, 16, 16, 2)
            choices = (
                *gemm_space.sides(work, default),
                ("depth", _DEPTHS),
                ("resident", tuple(sorted({*limits.RESIDENT, default.resident}))),
            )
            fits = partial(_fits, work, tuple(targets))
            cycles = partial(wmma.cost, work.folded())
            found.append(Variant(base, choices, fits, cycles, _complete))
    return found


def _complete(tiling: CudaTiling) -> CudaTiling:
    warps = tiling.block_voxels * tiling.block_channels // (tiling.voxels * tiling.lanes)
    return dataclasses.replace(tiling, threads=limits.WARP * warps)


def _fits(work: Workload, targets: Sequence[Architecture], tiling: CudaTiling) -> bool:
    if tiling.block_voxels % tiling.voxels or tiling.block_channels % tiling.lanes:
        return False
    # A fragment of sums is 8 registers of a thread; of operands as many.
    rows, columns = tiling.voxels // _SIDE, tiling.lanes // _SIDE
    registers = 8 * (rows * columns + rows + 1) + 32
    shared = CudaWmma(work, tiling).shared_bytes
    return limits.holds(tiling, registers, shared, targets) and gemm_space.even_loads(
        work, tiling, _VECTOR
    )
