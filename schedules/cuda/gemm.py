"""The matrix-product rule: shared-memory tiles of the phase form, for most layers.

Strategy
  1. Take the tile of voxels x channels, and the parts of its sum, that a model of the
     multiprocessor finds cheapest: products, what a slice costs beside them, and how the blocks
     fill the device, wave by wave.
  2. Where the batch is fixed and a tile's blocks would leave most multiprocessors idle, blocks may
     share sums; a second kernel adds the parts. Only where the model gives much for it.
  3. Bound the registers so that 12 to 16 warps fit, where a thread has 64 sums.
  4. Refuse where most products of the tiles would be with inputs that do not exist (few voxels,
     many taps): the definition, which skips them, is faster then.

The model's numbers were fitted to 300 kernels of 19 layers on an H100: it takes tiles that are 4 %
slower than the fastest ones on average (docs/cuda.md). Other architectures have the same model with
their own multiprocessors and products a cycle. What sharing sums costs is a guess from that
device's data sheet: no GPU has run it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.phases import Room
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.cuda_devices import ARCHITECTURES

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = [
    "FEWEST_COLUMNS",
    "TILES",
    "Tile",
    "cost",
    "decide",
    "fits",
    "products",
    "serves",
    "shares",
]


@dataclass(frozen=True)
class Tile:
    """A block's rows and columns, a thread's, the channels of a slice, and parts of the sum."""

    block_voxels: int
    block_channels: int
    voxels: int
    lanes: int
    depth: int
    parts: int = 1

    @property
    def threads(self) -> int:
        """Of a block."""
        return self.block_voxels * self.block_channels // (self.voxels * self.lanes) * self.parts

    @property
    def resident(self) -> int:
        """Blocks of a multiprocessor that leave registers for every value of the loop.

        Without this bound ptxas takes fewer registers and spills, or takes more than help.
        """
        if self.voxels * self.lanes > 32:
            return {64: 0, 128: 3, 256: 2}[self.threads]
        return max(1, 512 // self.threads)


TILES = (
    Tile(128, 128, 8, 8, 16),
    Tile(128, 128, 8, 8, 8),
    Tile(128, 64, 8, 8, 16),
    Tile(128, 64, 8, 8, 8),
    Tile(64, 64, 8, 8, 32, 2),
    Tile(64, 64, 8, 8, 16),
    Tile(64, 64, 8, 4, 16),
    Tile(128, 32, 8, 4, 16),
    Tile(64, 32, 8, 4, 32, 4),
    Tile(64, 32, 8, 4, 32, 2),
    Tile(32, 64, 8, 4, 32, 4),
    Tile(64, 32, 4, 4, 16),
    Tile(64, 32, 4, 4, 32, 2),
    Tile(32, 64, 4, 4, 16),
    Tile(32, 32, 4, 4, 32, 8),
    Tile(32, 32, 4, 4, 16),
    Tile(128, 16, 4, 4, 16),
    Tile(64, 16, 4, 4, 16),
)
"""Tiles that the rule chooses from; those of 8 x 8 sums are for float32 alone."""

#: Below this many columns a tile is mostly padding.
FEWEST_COLUMNS = 8
#: How much more a product costs in the definition, which loads its operands for four sums.
_DEFINITION = 6
#: Registers of a thread, by its sums, where their number is not bounded.
_REGISTERS = {64: 168, 32: 128, 16: 104, 8: 80, 4: 64}
#: What a slice costs a warp beside its products, in instructions: each load of 16 bytes with its
#: address, bounds and store to shared memory; and the barrier and the step to the next slice.
_LOAD, _SLICE = 37, 74
#: Warps that keep a scheduler busy through the latency of their products.
_BUSY_WARPS = 1.3
_SCHEDULERS = 4
#: Blocks for each multiprocessor, below which most of them are idle.
_IDLE = 0.5
#: Cycles of a second launch, bytes that come to a multiprocessor from the second-level cache in a
#: cycle, and how many times as fast the model must find shared sums.
_LAUNCH, _BYTES, _GAIN = 4000, 16, 1.25
#: Blocks that may share a sum; most blocks of a call then, and bytes of the workspace.
_SHARES, _MOST_BLOCKS, _MOST_WORKSPACE = (1, 2, 4, 8, 16), 1024, 64 << 20


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


def shares(work: Workload) -> tuple[int, ...]:
    """Numbers of blocks that may share a sum: more than one where tiles are few, and sums long."""
    from tvmconv.compute.cuda import shared_sums

    plan = work.folded().plan
    if plan.batch <= 0:
        return (1,)
    room = Room(plan)
    tiles = plan.batch * room.phases * -(-room.voxels // 64) * -(-plan.filters // 64)
    slices = math.prod(min((one.taps for one in axis.phases), default=0) for axis in plan.axes)
    slices *= plan.in_channels // 16
    return tuple(
        n
        for n in _SHARES
        if n == 1
        or (
            n * tiles <= _MOST_BLOCKS
            and n <= slices
            and shared_sums.workspace_bytes(work.folded(), n) <= _MOST_WORKSPACE
        )
    )


def decide(
    work: Workload,
    targets: Sequence[Architecture],
    *,
    exact: bool = False,
    always: bool = False,
) -> CudaTiling | None:
    """The default tiling of the phase form; None for what it does not serve.

    With ``always`` also where most products would be with padding.
    """
    folded = work.folded()
    if not serves(work, exact=exact) or folded.plan.filters < FEWEST_COLUMNS:
        return None
    best: tuple[float, Tile, CudaTiling] | None = None
    for tile, tiling in _candidates(work, targets):
        cycles = cost(work, tiling, targets) * (_GAIN if tiling.sum_blocks > 1 else 1)
        if best is None or cycles < best[0]:
            best = (cycles, tile, tiling)
    if best is None:
        return None
    useful = max(1, work.plan.flops // 2)
    wasted = products(folded, best[1], folded.plan.in_channels) > _DEFINITION * useful
    if wasted and not always:
        return None
    return best[2]


def _candidates(
    work: Workload, targets: Sequence[Architecture]
) -> Iterator[tuple[Tile, CudaTiling]]:
    """The tilings that the rule chooses from."""
    from tvmconv.compute.cuda.gemm import CudaGemm

    for tile in TILES:
        if work.accumulate_dtype == "float64" and (tile.voxels * tile.lanes > 32 or tile.parts > 1):
            continue
        tiling = CudaTiling(
            "gemm", tile.threads, tile.lanes, tile.voxels, tile.block_voxels,
            tile.block_channels, tile.depth, 2, tile.resident,
        )  # fmt: skip
        form = CudaGemm(work, tiling)
        if not fits(tiling, form.shared_bytes, targets):
            continue
        yield tile, tiling
        blocks = max(1, work.plan.batch) * math.prod(form.grid)
        # Of a binary for several architectures: on most of them.
        if sum(blocks / one.multiprocessors for one in targets) < _IDLE * len(targets):
            for number in shares(work)[1:]:
                yield tile, dataclasses.replace(tiling, sum_blocks=number)


def cost(work: Workload, tiling: CudaTiling, targets: Sequence[Architecture] = ()) -> float:
    """Cycles of a multiprocessor for one call, by the model; several targets: their mean."""
    found = [_cycles(work, tiling, one) for one in targets or [ARCHITECTURES["sm_90"]]]
    return math.exp(sum(map(math.log, found)) / len(found))


def _cycles(work: Workload, tiling: CudaTiling, target: Architecture) -> float:
    from tvmconv.compute.cuda.gemm import CudaGemm

    plan, form = work.folded().plan, CudaGemm(work, tiling)
    room = Room(plan)
    taps = math.prod(sum(phase.taps for phase in axis.phases) for axis in plan.axes) / room.phases
    steps = max(taps, 1) * -(-plan.in_channels // tiling.depth) / tiling.sum_blocks
    blocks = max(1, plan.batch) * math.prod(form.grid)
    # A warp's products take a scheduler a cycle each, or two where it has half the lanes.
    depth = tiling.depth * form.tile_threads // tiling.threads
    multiply = depth * tiling.voxels * tiling.lanes * 128 / target.float_lanes
    loads = (tiling.block_voxels + tiling.block_channels) * tiling.depth / 4 / tiling.threads
    warp = steps * (multiply + _LOAD * loads + _SLICE)

    def wave(count: int) -> float:
        warps = count * tiling.threads / 32 / _SCHEDULERS
        return max(warps, _BUSY_WARPS) * warp if count else 0.0

    here = math.ceil(blocks / target.multiprocessors)
    together = min(here, _resident(tiling, form.shared_bytes, target))
    cycles = here // together * wave(together) + wave(here % together)
    if tiling.sum_blocks > 1:
        outputs = max(1, plan.batch) * math.prod(plan.output_shape[1:])
        moved = form.element * outputs * (2 * tiling.sum_blocks + 1)
        cycles += _LAUNCH + moved / (target.multiprocessors * _BYTES)
    return cycles


def _resident(tiling: CudaTiling, shared_bytes: int, target: Architecture) -> int:
    """Blocks that a multiprocessor holds at once."""
    registers = _REGISTERS[tiling.voxels * tiling.lanes]
    if tiling.resident:
        registers = min(registers, target.most_registers(tiling.threads, tiling.resident))
    share = target.occupancy(tiling.threads, registers, shared_bytes)
    return max(1, round(share * target.threads / tiling.threads))


assert all(t.threads % 32 == 0 for t in TILES)
