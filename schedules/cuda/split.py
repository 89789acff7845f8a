"""The rule for few voxels and many channels: the sum over the channels in parts.

Strategy
  1. At most 64 voxels in a phase, and enough channels for every warp of a block.
  2. The voxels of a block, columns of a thread and warps of a block that a model finds cheapest:
     products, loads, and how evenly blocks fill the device.
  3. Only up to 8 voxels, or where the matrix product would mostly multiply zeros: with its sum in
     parts that was faster on an H100 (docs/cuda.md).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import gemm

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["FEWEST_CHANNELS", "FEWEST_COLUMNS", "cost", "decide", "tiles"]

_MOST_VOXELS = 64
#: With more voxels the matrix product comes first, where it serves.
_FEW_VOXELS = 8
FEWEST_CHANNELS = 64
FEWEST_COLUMNS = 16
_WARP = 32
#: Warps that hide the latency of loads without a slice in flight.
_BUSY_WARPS = 16
#: Instructions of a step beside products and loads, and cycles of adding the parts.
_STEP, _PARTS = 12, 400
_MULTIPROCESSORS = 80


def decide(
    work: Workload, targets: Sequence[Architecture], *, exact: bool = False
) -> CudaTiling | None:
    """The default tiling with a sum in parts; None for what it does not serve."""
    from tvmconv.compute.cuda.split import CudaSplit

    if not gemm.serves(work, exact=exact):
        return None
    plan = work.folded().plan
    if (
        Room(plan).voxels > _MOST_VOXELS
        or plan.in_channels < FEWEST_CHANNELS
        or plan.filters < FEWEST_COLUMNS
    ):
        return None
    best: tuple[float, CudaTiling] | None = None
    for (voxels, lanes), warps in itertools.product(tiles(work), (8, 4)):
        tiling = CudaTiling("split", _WARP * warps, lanes, voxels, voxels, _WARP * lanes)
        form = CudaSplit(work, tiling)
        if not gemm.fits(tiling, form.shared_bytes, targets):
            continue
        cycles = cost(work, tiling)
        if best is None or cycles < best[0]:
            best = (cycles, tiling)
    if best is None or (
        Room(plan).voxels > _FEW_VOXELS and gemm.decide(work, targets, exact=exact) is not None
    ):
        return None
    return best[1]


def tiles(work: Workload) -> list[tuple[int, int]]:
    """Voxels of a block and columns of a thread that registers hold, and one load brings."""
    wide = 2 if work.accumulate_dtype == "float64" else 1
    pairs = itertools.product((8, 4, 2, 1), (4, 2, 1))
    return [(v, lanes) for v, lanes in pairs if v * lanes * wide <= 32 and lanes * wide <= 4]


def cost(work: Workload, tiling: CudaTiling) -> float:
    """Cycles of a multiprocessor for one sample, by the model of the matrix product."""
    from tvmconv.compute.cuda.split import CudaSplit

    together = CudaSplit(work, tiling).together
    plan = work.folded().plan
    room = Room(plan)
    warps = tiling.threads // _WARP
    tiles = -(-room.voxels // tiling.voxels)
    columns = -(-plan.filters // tiling.block_channels)
    blocks = max(1, plan.batch) * tiles * room.phases * columns
    # Where taps reach few voxels, most blocks skip most of them.
    needed = math.prod(axis.useful_taps for axis in plan.axes)
    every = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes)
    taps = min(every / room.phases, max(1, needed / (tiles * room.phases)))
    steps = taps * -(-plan.in_channels // (together * warps))
    step = 0.25 * together * tiling.lanes * tiling.voxels + tiling.voxels + together + _STEP
    here = math.ceil(blocks / _MULTIPROCESSORS)
    return max(here * warps, _BUSY_WARPS) * steps * step + here * _PARTS
