"""What tuning may change for few filters.

Fixed in a variant: the positions of a thread, its block's threads along the depth, and the parts
of a sum that groups of threads share. Free: the threads along height and width, and the channels
of a slice.

Not offered: more sums than registers, and blocks that reach far beyond the input.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.small import CudaSmall
from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import definition, gemm, limits, small
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["variants"]

_MOST_FILTERS = 16
_DEPTHS = (1, 2, 4, 8, 16)
_ALONG_DEPTH = (1, 2, 4, 8)
_PARTS = (1, 2)
_BUSY_WARPS = 8
_MULTIPROCESSORS = 80


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each number of positions, and of threads along the depth."""
    if not gemm.serves(work, exact=False) or work.plan.filters > _MOST_FILTERS:
        return []
    lanes = definition.decide(work, ()).lanes
    one = CudaSmall(work, CudaTiling("small", 32, lanes, 1))
    lattice = [len(positions) for positions in one.lattice]
    own = CudaSmall(work, default).threads_along[0] if default.form == "small" else 1
    found = []
    for voxels in (1, 2, 4):
        if not small.in_registers(work, voxels):
            continue
        for along, parts in itertools.product(sorted({*_ALONG_DEPTH, own}), _PARTS):
            if along not in (1, own) and (along - 1) * voxels >= lattice[0]:
                continue
            base = CudaTiling("small", 32, lanes, voxels)
            choices = (
                ("width", tuple(small.sizes(lattice[2]))),
                ("height", tuple(small.sizes(lattice[1]))),
                ("depth", tuple(d for d in _DEPTHS if d <= max(1, work.plan.in_channels))),
            )
            fits = partial(_fits, work, tuple(targets), tuple(lattice), parts)
            cycles = partial(_cycles, work)
            found.append(Variant(base, choices, fits, cycles, partial(_complete, along, parts)))
    return found


def _complete(along: int, parts: int, tiling: CudaTiling) -> CudaTiling:
    threads = along * tiling.height * tiling.width
    return dataclasses.replace(
        tiling, threads=threads * parts, block_voxels=threads * tiling.voxels
    )


def _fits(
    work: Workload,
    targets: Sequence[Architecture],
    lattice: tuple[int, ...],
    parts: int,
    tiling: CudaTiling,
) -> bool:
    if tiling.height >= 2 * lattice[1] or tiling.width >= 2 * lattice[2]:
        return False
    if tiling.depth % parts or not limits.WARP * parts <= tiling.threads <= 512:
        return False
    return gemm.fits(tiling, CudaSmall(work, tiling).shared_bytes, targets)


def _cycles(work: Workload, tiling: CudaTiling) -> float:
    """Products and loads of all blocks, as the rule counts them."""
    form = CudaSmall(work, tiling)
    taps = math.prod(work.plan.kernel_shape[:4])
    warps = -(-tiling.threads // limits.WARP)
    products = taps * tiling.voxels * warps * limits.WARP
    slices = -(-work.plan.in_channels // tiling.depth)
    loads = small.LOAD * math.prod(form.inside) + 32 * slices * warps
    blocks = math.prod(form.blocks) * max(1, work.plan.batch)
    here = math.ceil(blocks / _MULTIPROCESSORS)
    idle = max(1.0, _BUSY_WARPS / (here * warps))
    return blocks * (products + loads) * idle
