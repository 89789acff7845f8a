"""The rule that always fits: the definition, one voxel at a time, with the channels as lanes.

It serves shapes that the phase form refuses: kernels that are not finite (NaN and infinities stay
where the definition puts them), strides along the width that would make too much code, and whatever
no other rule takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tvmconv.compute.tiling import Tiling

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.targets import CpuTarget

__all__ = ["decide"]


def decide(work: Workload, target: CpuTarget, *, exact: bool = False) -> Tiling:
    """A tiling with one row a task tile."""
    del exact
    bits = 64 if work.accumulate_dtype == "float64" else 32
    vector = max(1, target.vector_bits // bits)
    while vector > 1 and vector // 2 >= work.plan.filters:
        vector //= 2
    registers = max(1, min(4, -(-work.plan.filters // vector)))
    return Tiling("definition", vector, registers, 1, 1, pack=False)
