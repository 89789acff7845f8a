"""What tuning may change in the matrix product.

Fixed in a variant: the voxels and columns of a thread, so its sums and the vectors that it loads,
and the parts of a sum that groups of a block's threads share. Free: the voxels and columns of a
block, the channels of a slice, for how many blocks of a multiprocessor the registers are bounded,
and how many blocks share a sum. The threads of a block follow.

Not offered: loads that the threads do not share evenly, more shared memory or registers than there
are, tiles that are twice what a phase has, and shared sums where there are blocks enough or the
batch is open.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.gemm import CudaGemm
from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import gemm, limits
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["even_loads", "variants"]

_MOST_SUMS = 64
_SIDES = (16, 32, 64, 128, 256)
_DEPTHS = (4, 8, 16, 32)
_PARTS = (1, 2, 4, 8)


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each tile of a thread."""
    folded = work.folded()
    if not gemm.serves(work, exact=False) or folded.plan.filters < gemm.FEWEST_COLUMNS:
        return []
    wide = 2 if work.accumulate_dtype == "float64" else 1
    vector = 4 // wide
    found = []
    sizes = (vector, 2 * vector, 4 * vector)
    for voxels, lanes, parts in itertools.product(sizes, sizes, _PARTS):
        if voxels * lanes * wide > _MOST_SUMS:
            continue
        if wide > 1 and parts > 1:
            continue
        base = CudaTiling("gemm", 32, lanes, voxels, 16, 16, 8, 2)
        choices = (
            *sides(work, default),
            ("depth", _DEPTHS),
            ("resident", tuple(sorted({*limits.RESIDENT, default.resident}))),
            ("sum_blocks", gemm.shares(work)),
        )
        fits = partial(_fits, work, tuple(targets), wide, parts)
        cycles = partial(_cycles, work, tuple(targets))
        found.append(Variant(base, choices, fits, cycles, partial(_complete, parts)))
    return found


def sides(work: Workload, default: CudaTiling) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Voxels and columns of a block: not twice what there is, unless the rule says so."""
    plan = work.folded().plan
    rows = limits.rounded(Room(plan).voxels, _SIDES[0])
    columns = limits.rounded(plan.filters, _SIDES[0])
    return (
        ("block_voxels", tuple(s for s in _SIDES if s <= max(rows, default.block_voxels))),
        ("block_channels", tuple(s for s in _SIDES if s <= max(columns, default.block_channels))),
    )


def _complete(parts: int, tiling: CudaTiling) -> CudaTiling:
    threads = tiling.block_voxels * tiling.block_channels // (tiling.voxels * tiling.lanes)
    return dataclasses.replace(tiling, threads=threads * parts)


def _fits(
    work: Workload, targets: Sequence[Architecture], wide: int, parts: int, tiling: CudaTiling
) -> bool:
    if tiling.block_voxels % tiling.voxels or tiling.block_channels % tiling.lanes:
        return False
    if tiling.depth % parts or (parts > 1 and tiling.depth // parts < 4):
        return False
    registers = 3 * tiling.voxels * tiling.lanes * wide // 2 + 32
    shared = CudaGemm(work, tiling).shared_bytes
    vector = 4 // wide
    return limits.holds(tiling, registers, shared, targets) and even_loads(work, tiling, vector)


def _cycles(work: Workload, targets: Sequence[Architecture], tiling: CudaTiling) -> float:
    return gemm.cost(work, tiling, targets)


def even_loads(work: Workload, tiling: CudaTiling, vector: int) -> bool:
    """Whether a slice of inputs is the same number of loads for each thread, or one for some."""
    plan = work.folded().plan
    load = 1 if plan.channels_first else vector
    while plan.in_channels % load:
        load //= 2
    for size in {load, 1}:  # half-width loads may fall back to single ones
        number = tiling.block_voxels * tiling.depth // size
        if number >= tiling.threads and number % tiling.threads:
            return False
    return tiling.depth % load == 0
