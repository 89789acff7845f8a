"""Which tilings a multiprocessor can hold: shared memory, threads, registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.schedules.cuda import gemm

if TYPE_CHECKING:
    from tvmconv.compute.cuda.tiling import CudaTiling
    from tvmconv.cuda_devices import Architecture

__all__ = ["RESIDENT", "WARP", "holds", "rounded"]

WARP = 32
#: Blocks of a multiprocessor that registers may be bounded for; 0 leaves them to ptxas.
RESIDENT = (0, 2, 3, 4, 6, 8, 16)
_MOST_THREADS = 512


def holds(
    tiling: CudaTiling, registers: int, shared_bytes: int, targets: Sequence[Architecture]
) -> bool:
    """Whether every target runs a block, and as many at a time as the tiling asks for.

    Parameters
    ----------
    tiling
        Threads of a block, and its blocks of a multiprocessor.
    registers
        That a thread needs at least: with fewer it would spill in its innermost loop.
    shared_bytes
        Of a block.
    """
    if tiling.threads % WARP or not WARP <= tiling.threads <= _MOST_THREADS:
        return False
    if not gemm.fits(tiling, shared_bytes, targets):
        return False
    blocks = max(1, tiling.resident)
    for one in targets:
        if registers > one.most_registers(tiling.threads, blocks):
            return False
        if tiling.resident and (
            tiling.threads * blocks > one.threads
            or blocks > one.blocks
            or shared_bytes * blocks > one.shared_bytes
        ):
            return False
    return True


def rounded(count: int, least: int) -> int:
    """The power of two that holds ``count``: larger tiles are padding alone."""
    size = least
    while size < count:
        size *= 2
    return size
