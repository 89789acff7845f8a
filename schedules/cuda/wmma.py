"""The tensor-core rule: half-width layers with enough channels on both sides.

bfloat16 needs sm_80 on all architectures of a binary: without it such layers are computed in
float32.

Strategy
  1. Tiles of 16 x 16 must be mostly full: at least 16 input channels and 16 columns.
  2. Take the block's tile that a model finds cheapest: tensor-core steps, loads of fragments, what
     a slice costs beside them, and how evenly blocks fill the device.
  3. Refuse where most products would be with inputs that do not exist; tensor cores forgive more of
     that than the definition's plain products.

No number of the model was fitted to a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import gemm
from tvmconv.schedules.cuda.gemm import Tile, fits, products

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["TILES", "cost", "decide", "serves"]

#: Block's voxels and channels, a warp's voxels and channels.
TILES = (
    (128, 64, 64, 32),
    (64, 128, 32, 64),
    (128, 32, 32, 32),
    (64, 64, 32, 32),
    (64, 32, 32, 16),
)

#: The first architecture whose tensor cores multiply a dtype.
_OLDEST = {"float16": 75, "bfloat16": 80}
_MULTIPROCESSORS = 80
_BUSY_WARPS = 8
_FEWEST = 16
_MOST_WASTE = 24
#: Instructions of a slice beside products and loads of fragments.
_SLICE = 120


def decide(
    work: Workload,
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    always: bool = False,
) -> CudaTiling | None:
    """The default tiling on tensor cores; None for what they do not serve.

    With ``always`` also where most products would be with padding.
    """
    from tvmconv.compute.cuda.wmma import CudaWmma

    if not serves(work, targets, exact=exact):
        return None
    plan = work.folded().plan
    depth = 32 if plan.in_channels > 16 else 16
    best: tuple[float, CudaTiling] | None = None
    for rows, columns, warp_rows, warp_columns in TILES:
        warps = rows * columns // (warp_rows * warp_columns)
        tiling = CudaTiling("wmma", 32 * warps, warp_columns, warp_rows, rows, columns, depth, 2)
        if not fits(tiling, CudaWmma(work, tiling).shared_bytes, targets):
            continue
        cycles = cost(work.folded(), tiling)
        if best is None or cycles < best[0]:
            best = (cycles, tiling)
    if best is None:
        return None
    tile = Tile(best[1].block_voxels, best[1].block_channels, 1, 1, depth)
    useful = max(1, work.plan.flops // 2)
    wasted = products(work.folded(), tile, plan.in_channels) > _MOST_WASTE * useful
    if wasted and not always:
        return None
    return best[1]


def serves(work: Workload, targets: Sequence[Architecture], *, exact: bool = False) -> bool:
    """Whether the tensor cores of all targets multiply a workload's dtype, in mostly full tiles."""
    oldest = _OLDEST.get(work.input_dtype)
    if oldest is None or not gemm.serves(work, exact=exact):
        return False
    plan = work.folded().plan
    full = plan.filters >= _FEWEST and plan.in_channels >= _FEWEST
    return full and all(target.number >= oldest for target in targets)


def cost(work: Workload, tiling: CudaTiling) -> float:
    """Cycles of a multiprocessor for one sample of a (folded) workload, by the model."""
    plan = work.plan
    warps = tiling.threads // 32
    room = Room(plan)
    rows = -(-room.voxels // tiling.block_voxels)
    columns = -(-plan.filters // tiling.block_channels)
    slices = -(-plan.in_channels // tiling.depth)
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes) / room.phases
    blocks = max(1, plan.batch) * rows * columns * room.phases
    down, across = tiling.voxels // 16, tiling.lanes // 16
    step = 4 * down * across + 4 * (down + across)
    slice_cost = tiling.depth // 16 * step + _SLICE
    here = math.ceil(blocks / _MULTIPROCESSORS)
    return max(here * warps, _BUSY_WARPS) * max(taps, 1) * slices * slice_cost
