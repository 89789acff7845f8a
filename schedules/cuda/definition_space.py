"""What tuning may change in the definition: the channels and the threads of a block."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from tvmconv.compute.cuda.tiling import CudaTiling
from tvmconv.schedules.cuda import definition
from tvmconv.schedules.space import Variant

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.cuda_devices import Architecture

__all__ = ["variants"]

_THREADS = (64, 128, 256, 512)
_LANES = (1, 2, 4)
#: Cycles of a product with one load of weights for all lanes.
_PRODUCT, _LOADS = 1.0, 5.0


def variants(work: Workload, targets: Sequence[Architecture], default: CudaTiling) -> list[Variant]:
    """A variant for each number of channels of a thread."""
    del targets, default
    most = definition.decide(work, ()).lanes
    return [
        Variant(
            CudaTiling("definition", 256, lanes),
            (("threads", _THREADS),),
            lambda _: True,
            partial(_cycles, work),
        )
        for lanes in _LANES
        if lanes <= most
    ]


def _cycles(work: Workload, tiling: CudaTiling) -> float:
    """Far more than of other forms: each product loads its operands."""
    products = max(1, work.plan.flops // 2) * max(1, work.plan.batch)
    return products / 32 * (_PRODUCT + _LOADS / tiling.lanes)
