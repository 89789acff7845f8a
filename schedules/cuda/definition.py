"""The rule that always fits: a thread computes four channels of one voxel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.tiling import CudaTiling

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["decide"]

_THREADS = 256


def decide(work: Workload, targets: Sequence[Architecture], *, exact: bool = False) -> CudaTiling:
    """As many channels a thread as one load of weights brings: 16 bytes."""
    del targets, exact
    most = 2 if work.accumulate_dtype == "float64" else 4
    # glu finds its other half the axis away, which no multiple of 4 need be.
    lanes = 1 if work.activation.name == "glu" or work.plan.filters == 1 else most
    return CudaTiling("definition", _THREADS, lanes)
