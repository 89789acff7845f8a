"""The decisions that shape a GPU kernel: plain numbers, made by a rule or read from a record."""

from __future__ import annotations

from dataclasses import dataclass

from tvmconv.compute.tiling import Decisions

__all__ = ["CudaTiling"]


@dataclass(frozen=True)
class CudaTiling(Decisions):
    """How one form is cut into blocks and threads.

    Attributes
    ----------
    form : str
        ``"definition"`` (a thread for a few channels of one voxel), ``"gemm"`` (shared-memory tiles
        of one phase), ``"wmma"`` (the same on tensor cores), ``"small"`` (few filters: a thread for
        all phases of some input positions), ``"split"`` (few voxels: a sum in parts) or
        ``"toom-cook"`` (fewer products, of sums).
    threads : int
        Of a block.
    lanes : int
        Channels that a thread computes.
    voxels : int
        Voxels that a thread computes.
    block_voxels, block_channels : int
        The tile of a block.
    depth : int
        Input channels that are in shared memory at a time.
    stages : int
        Shared-memory tiles in flight: 2 loads one while the other is multiplied.
    width, height : int
        Threads of a block along the width and the height of the input (small).
    outputs : tuple of int
        Outputs of a phase that a tile makes along each axis (toom-cook); 1: tap by tap.
    copied : int
        1: slices are copied to shared memory past the registers (toom-cook), from sm_80 on.
    sum_blocks : int
        Blocks that share a sum (gemm): their parts go through the workspace, and a second kernel
        adds them. 1 where the batch is open, since the workspace would grow with it.
    columns : tuple of int
        Sums of inputs that a block multiplies along each axis (toom-cook): whole tiles of every
        phase.
    resident : int
        Blocks that a multiprocessor should hold at once, which bounds their registers; 0: any.
    """

    threads: int
    lanes: int
    voxels: int = 1
    block_voxels: int = 1
    block_channels: int = 1
    depth: int = 1
    stages: int = 1
    resident: int = 0
    width: int = 1
    height: int = 1
    outputs: tuple[int, int, int] = (1, 1, 1)
    columns: tuple[int, int, int] = (1, 1, 1)
    copied: int = 0
    sum_blocks: int = 1

    @property
    def structure(self) -> tuple[object, ...]:
        """See `Decisions`: what a thread (or a warp of tensor cores) or a tile computes."""
        return (self.form, self.voxels, self.lanes, self.outputs)
