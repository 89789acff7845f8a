"""The rule for ``mma.sync``: layers with enough channels on both sides, for sm_80 and later alone.

float16 and bfloat16; float32 where it may be rounded to TF32, which the caller knows.

Strategy
  1. Rows of 64 bytes and groups of 32 columns must be mostly full.
  2. Take the block's tile that a model finds cheapest: the slowest of tensor cores, instructions,
     shared memory and what a slice brings, and how evenly blocks fill the device.
  3. Where blocks are few and sums long, warps share a tile, each a part of every slice.
  4. Refuse where most products would be with inputs that do not exist.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda.gemm import Tile, products, serves

if TYPE_CHECKING:
    from tvmconv.compute.cuda.mma import CudaMma
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["TILES", "candidates", "cost", "decide", "fits"]

TILES = (
    (128, 128, 64, 32, 1),
    (128, 64, 64, 32, 1),
    (128, 32, 32, 32, 1),
    (64, 128, 32, 64, 1),
    (64, 64, 32, 32, 1),
    (64, 64, 32, 32, 2),
    (64, 32, 16, 32, 1),
    (64, 32, 32, 32, 2),
    (32, 64, 32, 32, 2),
    (32, 32, 32, 32, 4),
    (16, 64, 16, 64, 4),
)
"""Block's voxels and channels, a warp's voxels and channels, and the warps that share a tile."""

STAGES = 3, 4
"""Slices in shared memory."""

FIRST = 80
"""The first architecture with asynchronous copies and all the dtypes."""
_DTYPES = ("float16", "bfloat16", "float32")
_MULTIPROCESSORS = 108
_FEWEST_COLUMNS, _FEWEST_BYTES = 16, 32
_MOST_WASTE = 24
#: Bytes that a multiprocessor's share of the second-level cache gives in a cycle.
_BROUGHT = 32
#: Cycles of one step of a tile on tensor cores, and of a load of matrices from shared memory.
_STEP, _LOAD = 8, 4
#: Instructions of a slice beside steps and loads, and cycles from one barrier to the next.
_SLICE, _LATENCY = 100, 120
_SCHEDULERS = 4


def fits(form: CudaMma, targets: Sequence[Architecture]) -> bool:
    """Whether a block's resources exist on every target, and registers for its sums."""
    tiling = form.tiling
    sums = tiling.voxels * tiling.lanes // 32
    # The fragments of a step, the places of the loads, indices.
    registers = sums + tiling.voxels // 2 + tiling.lanes // 2 + 44
    return tiling.threads <= 512 and all(
        form.shared_bytes <= one.block_shared_bytes
        and one.occupancy(tiling.threads, registers, form.shared_bytes) > 0
        for one in targets
    )


def candidates(work: Workload) -> Iterator[CudaTiling]:
    """The tilings that the rule chooses from."""
    from tvmconv.compute.cuda.operands import Rows

    operands = Rows(work.folded())
    for rows, columns, warp_rows, warp_columns, parts in TILES:
        threads = 32 * parts * (rows // warp_rows) * (columns // warp_columns)
        depth = parts * operands.depth
        if depth > operands.channels:
            continue
        for stages in STAGES:
            yield CudaTiling("mma", threads, warp_columns, warp_rows, rows, columns, depth, stages)


def decide(
    work: Workload, targets: Sequence[Architecture], *, exact: bool = False
) -> CudaTiling | None:
    """The default tiling by ``mma.sync``; None for what it does not serve."""
    from tvmconv.compute.cuda.mma import CudaMma

    if work.input_dtype not in _DTYPES or not serves(work, exact=exact):
        return None
    if any(target.number < FIRST for target in targets):
        return None
    plan = work.folded().plan
    operands = CudaMma(work, next(candidates(work))).operands
    if plan.filters < _FEWEST_COLUMNS or plan.in_channels * operands.bytes < _FEWEST_BYTES:
        return None
    found = [tiling for tiling in candidates(work) if fits(CudaMma(work, tiling), targets)]
    best = min(found, key=lambda tiling: cost(work, tiling, targets), default=None)
    if best is None:
        return None
    tile = Tile(best.block_voxels, best.block_channels, 1, 1, best.depth)
    useful = max(1, work.plan.flops // 2)
    if products(work.folded(), tile, plan.in_channels) > _MOST_WASTE * useful:
        return None
    return best


def cost(work: Workload, tiling: CudaTiling, targets: Sequence[Architecture]) -> float:
    """Cycles of a multiprocessor for one sample, by the model."""
    from tvmconv.compute.cuda.mma import CudaMma

    form = CudaMma(work, tiling)
    plan = form.folded.plan
    room = Room(plan)
    rows = -(-room.voxels // tiling.block_voxels)
    columns = -(-plan.filters // tiling.block_channels)
    slices = -(-plan.in_channels // tiling.depth)
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes) / room.phases
    blocks = max(1, plan.batch) * rows * columns * room.phases
    warps = tiling.threads // 32
    down, across = tiling.voxels // 16, tiling.lanes // 8
    mine = form.rows // form.parts
    steps = 2 * down * across * mine * warps
    loads = (2 * down + across) * mine * warps
    brought = (tiling.block_voxels + tiling.block_channels) * 64 * form.rows
    issued = steps + loads + _SLICE * warps
    registers = tiling.voxels * tiling.lanes // 32 + tiling.voxels // 2 + tiling.lanes // 2 + 44
    occupancy = min(
        one.occupancy(tiling.threads, registers, form.shared_bytes) * one.threads for one in targets
    )
    resident = max(1, int(occupancy) // tiling.threads)
    busy = max(steps * _STEP / _SCHEDULERS, loads * _LOAD, brought / _BROUGHT, issued / _SCHEDULERS)
    here = math.ceil(blocks / _MULTIPROCESSORS)
    together = min(resident, here)
    # Blocks side by side hide each other's latency.
    slice_cost = max(busy, _LATENCY / together)
    return here * (max(taps, 1) * slices + tiling.stages) * slice_cost + tiling.stages * _LATENCY
