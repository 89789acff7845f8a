"""The matrix-product rule: shared-memory tiles of the phase form, for most layers.

Strategy
  1. Take the tile of voxels x channels that a model of the multiprocessor finds cheapest: products,
     loads from shared memory, what tiles pad, and how evenly blocks fill the device.
  2. Bound the registers so that 12 to 16 warps fit, where a thread has 64 sums.
  3. Refuse where most products of the tiles would be with inputs that do not exist (few voxels,
     many taps): the definition, which skips them, is faster then.

No number of the model was fitted to a GPU. The tiles' instructions and registers are in
docs/cuda-kernels.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["TILES", "Tile", "cost", "decide", "fits", "products", "serves"]


@dataclass(frozen=True)
class Tile:
    """A block's rows and columns, a thread's, and the channels of a slice."""

    block_voxels: int
    block_channels: int
    voxels: int
    lanes: int
    depth: int

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block_voxels * self.block_channels // (self.voxels * self.lanes)


TILES = (
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 8),
    Tile(128, 32, 8, 4, 16),
    Tile(64, 64, 8, 4, 16),
    Tile(64, 32, 4, 4, 16),
    Tile(32, 64, 4, 4, 16),
    Tile(32, 32, 4, 4, 16),
    Tile(128, 16, 4, 4, 16),
    Tile(64, 16, 4, 4, 16),
)
"""Tiles that the rule chooses from; those of 8 x 8 sums are for float32 alone."""

#: Multiprocessors of a device in the middle of the range; the order of tiles hardly depends on it.
_MULTIPROCESSORS = 80
#: Warps that keep a multiprocessor's four schedulers busy through the latency of their products.
_BUSY_WARPS = 8
#: Below this many columns a tile is mostly padding.
_FEWEST_COLUMNS = 8
#: How much more a product costs in the definition, which loads its operands for four sums.
_DEFINITION = 6
#: Blocks of 64 sums a thread on a multiprocessor, by their threads: as many as leave registers for
#: every value of the loop. Tiles of fewer sums get 128 registers, or ptxas takes fewer and spills.
_RESIDENT = {128: 3, 256: 2}


def products(work: Workload, tile: Tile, channels: int) -> int:
    """Multiply-adds of all tiles of one sample of a (folded) workload, padding included."""
    plan = work.plan
    rows = -(-Room(plan).voxels // tile.block_voxels) * tile.block_voxels
    columns = -(-plan.filters // tile.block_channels) * tile.block_channels
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes)
    return rows * columns * taps * channels


def fits(tiling: CudaTiling, shared_bytes: int, targets: Sequence[Architecture]) -> bool:
    """Whether a block's resources exist on every target: static shared memory is 48 KiB at most."""
    return (
        shared_bytes <= 48 << 10
        and 32 <= tiling.threads <= 1024
        and all(one.occupancy(tiling.threads, 32, shared_bytes) > 0 for one in targets)
    )


def serves(work: Workload, *, exact: bool) -> bool:
    """Whether the phase form can compute a workload at all.

    It multiplies weights with zeros for inputs that do not exist, so they must be finite.
    """
    return not (
        exact or work.empty or 0 in work.plan.input_shape[1:] or work.activation.name == "glu"
    )


def decide(
    work: Workload, targets: Sequence[Architecture], *, exact: bool = False
) -> CudaTiling | None:
    """The default tiling of the phase form; None for what it does not serve."""
    from tvmconv.compute.cuda.gemm import CudaGemm

    folded = work.folded()
    if not serves(work, exact=exact) or folded.plan.filters < _FEWEST_COLUMNS:
        return None
    best: tuple[float, CudaTiling] | None = None
    for tile in TILES:
        wide = tile.voxels * tile.lanes > 32
        if wide and work.accumulate_dtype == "float64":
            continue
        resident = _RESIDENT[tile.threads] if wide else 512 // tile.threads
        tiling = CudaTiling(
            "gemm", tile.threads, tile.lanes, tile.voxels, tile.block_voxels,
            tile.block_channels, tile.depth, 2, resident,
        )  # fmt: skip
        if not fits(tiling, CudaGemm(work, tiling).shared_bytes, targets):
            continue
        cycles = cost(folded, tiling)
        if best is None or cycles < best[0]:
            best = (cycles, tiling)
    if best is None:
        return None
    tile = next(t for t in TILES if (t.block_voxels, t.block_channels) ==
                (best[1].block_voxels, best[1].block_channels))  # fmt: skip
    useful = max(1, work.plan.flops // 2)
    if products(folded, tile, folded.plan.in_channels) > _DEFINITION * useful:
        return None
    return best[1]


def cost(work: Workload, tile: CudaTiling) -> float:
    """Cycles of a multiprocessor for one sample of a (folded) workload, by the model."""
    plan = work.plan
    room = Room(plan)
    batch = max(1, plan.batch)
    rows = -(-room.voxels // tile.block_voxels)
    columns = -(-plan.filters // tile.block_channels)
    slices = -(-plan.in_channels // tile.depth)
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes) / room.phases
    blocks = batch * rows * columns * room.phases
    # A warp's products take a quarter of a cycle each, a load of 16 bytes a thread one.
    step = 0.25 * tile.voxels * tile.lanes + (tile.voxels + tile.lanes) / 4
    slice_cost = tile.depth * step + 40
    warps = tile.threads / 32
    here = math.ceil(blocks / _MULTIPROCESSORS)
    return max(here * warps, _BUSY_WARPS) * max(taps, 1) * slices * slice_cost


assert all(t.threads % 32 == 0 for t in TILES)
