"""The rule for ``mma.sync``: layers with enough channels on both sides, for sm_80 and later alone.

float16 and bfloat16; float32 where it may be rounded to TF32, which the caller knows.

Strategy
  1. There must be 16 columns, and 32 bytes of channels: half of a group and of a row.
  2. Take the tile that a model finds cheapest: the slowest of tensor cores, instructions, shared
     memory and what a slice brings, and how evenly blocks fill the device. Where voxels are few,
     two warps share a tile.
  3. Refuse where most products would be with inputs that do not exist.

The model's numbers are fitted to 144 kernels of 27 layers on an H100: of the tiles timed for a
layer, the one it takes is 3 % slower than the fastest in the mean, 23 % at worst.
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

__all__ = ["FIRST", "TILES", "candidates", "cost", "decide", "fits", "tiling"]

TILES = (
    (128, 128, 64, 64, 1, 1, 4),
    (64, 128, 32, 64, 1, 1, 4),
    (128, 64, 64, 32, 1, 1, 4),
    (128, 64, 64, 32, 2, 1, 3),
    (64, 64, 32, 32, 1, 1, 4),
    (64, 64, 32, 32, 2, 1, 4),
    (128, 32, 32, 32, 1, 1, 4),
    (64, 32, 32, 32, 2, 2, 3),
    (64, 32, 32, 32, 1, 1, 4),
)
"""Block's voxels and channels, a warp's voxels and channels, rows of 64 bytes of a slice, the warps
that share them, and slices in shared memory."""

FIRST = 80
"""The first architecture with asynchronous copies and all the dtypes."""

_DTYPES = ("float16", "bfloat16", "float32")
_MULTIPROCESSORS = 132
_FEWEST_COLUMNS, _FEWEST_BYTES = 16, 32
_MOST_WASTE = 24
_SCHEDULERS = 4
#: Cycles of one step of a tile on tensor cores, of a load of matrices, and of an instruction.
_STEP, _LOAD, _INSTRUCTION = 6.5, 4, 0.85
#: Instructions of a warp in a slice: for a voxel's inputs, for each row of them, for each piece of
#: weights, and beside.
_INPUTS, _ROWS, _WEIGHTS, _SLICE = 16, 9, 3, 16
#: Bytes that come to a multiprocessor in a cycle, and that leave it.
_BROUGHT, _STORED = 52, 32
#: Cycles from one barrier to the next of a block alone, and of its beginning and end.
_LATENCY, _BLOCK = 330, 1970


def tiling(work: Workload, tile: tuple[int, int, int, int, int, int, int]) -> CudaTiling:
    """The tiling that an entry of `TILES` stands for."""
    from tvmconv.compute.cuda.operands import Rows

    rows, columns, warp_rows, warp_columns, deep, parts, stages = tile
    threads = 32 * parts * (rows // warp_rows) * (columns // warp_columns)
    depth = deep * Rows(work.folded()).depth
    return CudaTiling(
        "mma", threads, warp_columns, warp_rows, rows, columns, depth, stages
    )  # fmt: skip


def candidates(work: Workload, targets: Sequence[Architecture]) -> Iterator[CudaTiling]:
    """The tilings that the rule chooses from."""
    from tvmconv.compute.cuda.mma import CudaMma

    for tile in TILES:
        found = tiling(work, tile)
        form = CudaMma(work, found)
        # Neither rows nor columns of padding alone.
        known = (found.depth, form.operands.channels), (found.block_channels, form.operands.columns)
        if all(size <= most for size, most in known) and fits(form, targets):
            yield found


def fits(form: CudaMma, targets: Sequence[Architecture]) -> bool:
    """Whether a block's resources exist on every target, and registers for its sums."""
    threads, shared = form.tiling.threads, form.shared_bytes
    return threads <= 1024 and all(
        shared <= one.block_shared_bytes
        and one.occupancy(threads, _registers(form.tiling), shared) > 0
        for one in targets
    )


def _registers(tiling: CudaTiling) -> int:
    """Of a thread, about: the sums, the fragments of a step, the places of the loads, indices."""
    sums = tiling.voxels * tiling.lanes // 32
    return min(255, sums + tiling.voxels // 2 + tiling.lanes // 2 + 44)


def decide(
    work: Workload,
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    always: bool = False,
) -> CudaTiling | None:
    """The default tiling by ``mma.sync``; None for what it does not serve.

    With ``always`` also where most products would be with padding.
    """
    from tvmconv.compute.cuda.operands import Rows

    if work.input_dtype not in _DTYPES or not serves(work, exact=exact):
        return None
    if any(target.number < FIRST for target in targets):
        return None
    plan = work.folded().plan
    few = plan.in_channels * Rows(work.folded()).bytes < _FEWEST_BYTES
    if few or plan.filters < _FEWEST_COLUMNS:
        return None
    found = candidates(work, targets)
    best = min(found, key=lambda tiling: cost(work, tiling, targets), default=None)
    if best is None:
        return None
    tile = Tile(best.block_voxels, best.block_channels, 1, 1, best.depth)
    useful = max(1, work.plan.flops // 2)
    wasted = products(work.folded(), tile, plan.in_channels) > _MOST_WASTE * useful
    if wasted and not always:
        return None
    return best


def cost(work: Workload, tiling: CudaTiling, targets: Sequence[Architecture]) -> float:
    """Cycles of a multiprocessor for one sample, by the model."""
    from tvmconv.compute.cuda.mma import CudaMma
    from tvmconv.compute.cuda.operands import CHUNKS, ROW_BYTES

    form = CudaMma(work, tiling)
    plan = form.folded.plan
    room = Room(plan)
    rows = -(-room.voxels // tiling.block_voxels)
    columns = -(-plan.filters // tiling.block_channels)
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes) / room.phases
    slices = max(1, taps) * -(-plan.in_channels // tiling.depth)
    blocks = max(1, plan.batch) * rows * columns * room.phases
    warps, mine = tiling.threads // 32, form.rows // form.parts
    down, across = tiling.voxels // 16, tiling.lanes // 8
    steps, loads = 2 * down * across * mine, (2 * down + across) * mine
    inputs = max(1, tiling.block_voxels * CHUNKS // tiling.threads)
    weights = -(-form.rows * tiling.block_channels * CHUNKS // tiling.threads)
    each = steps + loads + inputs * (_INPUTS + _ROWS * form.rows) + weights * _WEIGHTS + _SLICE
    brought = (tiling.block_voxels + tiling.block_channels) * ROW_BYTES * form.rows
    busy = max(
        warps * steps * _STEP / _SCHEDULERS,
        warps * each * _INSTRUCTION / _SCHEDULERS,
        warps * loads * _LOAD + brought / 128,
        brought / _BROUGHT,
    )
    threads = min(
        one.occupancy(tiling.threads, _registers(tiling), form.shared_bytes) * one.threads
        for one in targets
    )
    here = math.ceil(blocks / _MULTIPROCESSORS)
    # Blocks side by side hide each other's latency.
    together = min(max(1, int(threads) // tiling.threads), here)
    stored = tiling.block_voxels * min(tiling.block_channels, plan.filters) * form.operands.bytes
    block = slices * max(busy, _LATENCY / together) + stored / _STORED + _BLOCK / together
    return here * block + tiling.stages * _LATENCY
