"""The register tile: how the innermost loops of a form become vector code.

Strategy
  1. The lanes of a tile are vectors; voxels and vectors are unrolled, so every sum is a register.
  2. Taps (depth, height, width) and input channels are the loops around them: each step loads the
     weights of one channel once and broadcasts one input a voxel.
  3. The sums start as the bias and leave the registers once, through the activation, to their place
     in the output.
  4. Copies into and out of scratch are vectors where the extent allows.

Not done, and why: splitting a row by a factor that does not divide it puts a predicate on the whole
tile and costs 20 %; rows are cut into equal tiles by the algorithm instead. ``decompose_reduction``
comes last, since the block it leaves takes no primitive.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tvmconv.compute import blocks

if TYPE_CHECKING:
    from tvmconv.compute.tiling import Tiling

__all__ = ["apply"]


def apply(kernel: Any, tiling: Tiling) -> Any:
    """The scheduled kernel, as a module of one function."""
    from tvm.s_tir import Schedule

    sch = Schedule(kernel)
    for name in _names(sch):
        kind = name.split("_", maxsplit=1)[0]
        block = sch.get_sblock(name)
        if kind == blocks.ACCUMULATE:
            _accumulate(sch, block, tiling)
        elif kind == blocks.PACK:
            channel = sch.get_loops(block)[-1]
            if int(sch.get(channel).extent) % tiling.vector == 0:
                sch.vectorize(sch.split(channel, [None, tiling.vector])[1])
    return sch.mod


def _names(sch: Any) -> list[str]:
    """The names of all blocks, outer ones first."""
    found: list[str] = []

    def walk(block: Any) -> None:
        for child in sch.get_child_blocks(block):
            found.append(sch.get(child).name_hint)
            walk(child)

    walk(sch.get_sblock("root"))
    return found


def _accumulate(sch: Any, block: Any, tiling: Tiling) -> None:
    voxel, lane, *reduction = sch.get_loops(block)[-6:]
    outer, inner = sch.split(lane, [None, tiling.vector])
    sch.reorder(*reduction, voxel, outer, inner)
    sch.vectorize(inner)
    sch.unroll(outer)
    sch.unroll(voxel)
    sch.decompose_reduction(block, reduction[0])
