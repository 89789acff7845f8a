"""The rule for few filters: fewer than eight, and sums of all phases that fit a thread's registers.

Strategy
  1. As many positions a thread as give 64 sums at most and still fill the device with blocks.
  2. The threads along each axis that cost the fewest products and loads. Positions are often one
     more than a power of two, so these need not be powers.
  3. As many channels a slice as leave a multiprocessor's shared memory to several blocks, half of
     them for each of two parts of a block's threads.
  4. Refuse where most products would be with inputs that do not exist: the definition skips them.

Numbers are from five layers on an H100 (docs/cuda.md).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import definition
from tvmconv.schedules.cuda.gemm import fits, serves

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["LOAD", "decide", "in_registers", "shaped", "sizes"]

_FILTERS = 7
_THREADS = (64, 160)
_WARP = 32
#: Neighbours along the width: what they read and write lies together.
_LEAST_WIDTH = 8
#: 4-byte registers of a thread for its sums, and for a row of weights with its inputs.
_SUMS = 64
_ROW = 72
#: Blocks of a multiprocessor that fill it.
_BLOCKS = 3
#: Most channels of a slice where a thread has one position.
_DEPTH = 8
#: Parts of a block's threads: more warps for the same inputs.
_PARTS = 2
#: Shared memory of a block.
_SHARED = 48 << 10
#: What bringing an input to shared memory costs, in products.
LOAD = 8
#: How much more a product costs in the definition.
_DEFINITION = 4


def shaped(work: Workload, voxels: int, depth: int) -> CudaTiling:
    """The tiling of ``voxels`` positions a thread and ``depth`` channels, its block shaped."""
    from tvmconv.compute.cuda.small import CudaSmall

    lanes = definition.decide(work, ()).lanes
    plan = work.plan
    form = CudaSmall(work, CudaTiling("small", 32, lanes, voxels))
    lattice = [len(positions) for positions in form.lattice]
    lattice[0] = -(-lattice[0] // voxels)
    taps = math.prod(plan.kernel_shape[:4])

    def cost(along: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        d, h, w = along
        blocks = math.prod(-(-size // t) for size, t in zip(lattice, along, strict=True))
        tile = zip((d * voxels, h, w), form.reach, strict=True)
        inside = math.prod(t + back for t, back in tile)
        warps = -(-(d * h * w) // _WARP)
        return blocks * (taps * voxels * warps * _WARP + LOAD * inside), along

    choices = [
        (d, h, w)
        for d, h, w in itertools.product(*map(sizes, lattice))
        if _THREADS[0] <= d * h * w <= _THREADS[1] and w >= min(lattice[2], _LEAST_WIDTH)
    ]
    d, h, w = min(choices, key=cost)
    threads = d * h * w
    return CudaTiling(
        "small", threads, lanes, voxels, threads * voxels, 1, depth, width=w, height=h
    )  # fmt: skip


def sizes(size: int) -> list[int]:
    """Threads along an axis: what cuts it into equal parts, and powers of two."""
    equal = {-(-size // parts) for parts in range(1, size + 1)}
    return sorted({one for one in equal if one <= _WARP} | {1, 2, 4, 8, 16, 32})


def decide(
    work: Workload, targets: Sequence[Architecture], *, exact: bool = False
) -> CudaTiling | None:
    """The default tiling for few filters; None for what it does not serve."""
    from tvmconv.compute.cuda.small import CudaSmall

    plan = work.plan
    if not serves(work, exact=exact) or plan.filters > _FILTERS:
        return None
    best: CudaTiling | None = None
    enough = _BLOCKS * max((one.multiprocessors for one in targets), default=0)
    for voxels, depth in itertools.product((4, 2, 1), (16, 8, 4, 2)):
        if depth > _DEPTH and voxels == 1:
            continue
        tiling = shaped(work, voxels, depth)
        tiling = dataclasses.replace(tiling, threads=_PARTS * tiling.threads)
        form = CudaSmall(work, tiling)
        if not in_registers(work, voxels):
            continue
        if form.shared_bytes > _SHARED or not fits(tiling, form.shared_bytes, targets):
            continue
        if best is not None and best.voxels == tiling.voxels:
            continue  # The same with more channels is there.
        positions = math.prod(form.blocks) * math.prod(form.tile)
        products = positions * math.prod(plan.kernel_shape)
        if products > _DEFINITION * max(1, plan.flops // 2):
            continue
        best = tiling
        if math.prod(form.blocks) * max(1, plan.batch) >= enough:
            break
    return best


def in_registers(work: Workload, voxels: int) -> bool:
    """Whether a thread's sums of all phases fit its registers, and a row of weights with them."""
    from tvmconv.compute.cuda.small import CudaSmall

    plan = work.plan
    wide = 2 if work.accumulate_dtype == "float64" else 1
    sums = math.prod(axis.stride for axis in plan.axes) * plan.filters * voxels
    form = CudaSmall(work, CudaTiling("small", 32, definition.decide(work, ()).lanes, voxels))
    row = form.row + voxels * plan.axes[2].max_taps
    return wide * sums <= _SUMS and wide * row <= _ROW
