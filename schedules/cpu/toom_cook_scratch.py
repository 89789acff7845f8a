"""Which tiling of Toom-Cook is taken where a little dearer one has less scratch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvmconv.schedules.cpu.pace import adders_apart

if TYPE_CHECKING:
    from tvmconv.compute.workload import Workload
    from tvmconv.schedules.cpu.candidate import Candidate
    from tvmconv.targets import CpuTarget

__all__ = ["with_less"]

#: Scratch of all tasks together that is nothing beside the tensors (a share of them, or bytes), and
#: how many times the cycles it may cost to stay below.
_SMALL_SHARE, _SMALL_SCRATCH, _COST = 0.05, 3.9e6, 1.03
#: Share of the last-level cache that the scratch of all cores, or twice that of one, had better
#: stay below: it holds the weights that all tasks read, too. By measurement on Zen 4: on two cores
#: a layer with 16 MB a core took 1.0 to 1.25 times as long as with 6, as others used that cache.
_SHARED = 0.5


def with_less(work: Workload, target: CpuTarget, found: list[Candidate]) -> Candidate:
    """The cheapest; a little dearer one where that keeps a call's memory, or its caches, small."""
    best = min(found, key=lambda one: one.cycles)
    plan = work.plan
    tensors = [plan.input_shape[1:], plan.output_shape[1:], plan.kernel_shape]
    small = max(_SMALL_SHARE * 4 * sum(map(math.prod, tensors)), _SMALL_SCRATCH) / target.cores
    limits = [small]
    if adders_apart(target):
        limits.append(_SHARED * target.last_level_bytes / max(2, target.cores))
    near = [one for one in found if one.cycles <= _COST * best.cycles]
    for limit in limits:
        few = [one for one in near if one.scratch <= limit]
        if few:
            return min(few, key=lambda one: one.cycles)
    return best
